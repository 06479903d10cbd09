"""What weights mean beyond their names and shapes: written into exported files, and compared when they come back.

A document of plain data (JSON):

    layout      of what no setting says: the order of patches and channels, text at (0, 0, 0), the scale of time
    version     of the project that wrote the file; not compared
    meaning     dotted setting -> value; a net with another value has the same shapes and other samples
    labels      class names in the order of the label table; [] without classes
    normalization   modality -> mean and std of the latents
    dropped     whether the condition was ever dropped, so that guidance has a null condition; not compared
    settings    sections trunk, condition and media, for those who read the file; not compared
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from autoencoders.base import LatentNormalization
from autoencoders.pretrained import weights_path
from configs.assembly.adapters import Adapters, build_adapters, media_key, named
from configs.assembly.latents import MEANING, media_settings, text_settings
from configs.buckets import by_size
from configs.schema import Config
from core.errors import CheckpointError, ConfigError, nearest
from core.training.config import to_plain
from modalities.conditioning.conditions import TextCondition

LAYOUT = 2  # in 1, media had the names of streams
# Settings of a trunk that no shape shows. `attention` and `text_time` change no sample.
HIDDEN = {
    "mmdit": ("heads", "qk_norm", "rope_axes", "rope_theta", "pos_embed", "time_scale"),
    "sit": ("heads", "patch"),
    "ddt": ("heads", "head_heads", "qk_norm"),
    "flux2": ("heads", "rope_axes", "rope_theta", "text_rows"),
    "wan": ("heads", "text_rows"),
}
OF_MEDIA = (*MEANING, "channels")
CLOSE = 1e-3  # of the deviations: statistics of the same data on another machine are closer, those of others are not


def weights_meaning(
    config: Config,
    adapters: Adapters,
    labels: list[str],
    normalization: Mapping[str, LatentNormalization],
    digests: Mapping[str, str],
    text: str,
) -> dict[str, Any]:
    """The document of a run's weights.

    Args:
        adapters: of all parts; weights of autoencoders are not read.
        digests: modality -> digest of its autoencoder's weights, where known.
        text: digest of the frozen text encoder, "" where unknown.
    """
    return {
        "layout": LAYOUT,
        "version": version(),
        "meaning": dict(_hidden(config, adapters, digests, text)),
        "labels": list(labels) if config.condition.kind == "label" else [],
        "normalization": {name: values.to_dict() for name, values in sorted(normalization.items())},
        "dropped": 0 < config.condition.dropped() < 1,
        "settings": _settings(config),
    }


def version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version("selfflow")
    except metadata.PackageNotFoundError:
        return "not installed"


def autoencoder_digests(config: Config, known: Mapping[str, Mapping[str, str]], root: Path) -> dict[str, str]:
    """modality -> digest of the autoencoder's weights: a known one (by stream and part), or that of weights at hand."""
    found: dict[str, str] = {}
    config = by_size(config)
    for stream, adapters in build_adapters(config, root).items():  # others than the run's: these are forgotten again
        for part, adapter in adapters.items():
            path = weights_path(adapter.config.autoencoder)
            if digest := known.get(stream, {}).get(part):
                found[adapter.modality] = digest
            elif adapter.modality not in found and path and Path(path).expanduser().exists():
                with named("autoencoder", f"{media_key(config.streams[stream], stream, part)}.autoencoder"):
                    found[adapter.modality] = adapter.autoencoder.digest()
    return found


def meaning_problems(file: dict[str, Any], own: dict[str, Any], accepted: list[str]) -> list[str]:
    """A line for every setting with another value than the file's weights were trained with.

    Args:
        file: document of the file; {} of a file that says nothing.
        own: that of the run that takes the weights.
        accepted: settings that may differ; `labels` is one of them.

    Modalities, and modalities in one sample, that only one of them has are left to the names of the weights. Raises
    ConfigError for an accepted setting that there is none of, CheckpointError for a document of another layout.
    """
    if not file:
        return []
    if file.get("layout") != LAYOUT:
        raise CheckpointError(
            f"the file is of layout {file.get('layout')!r}, written by version {file.get('version')} of this project; "
            f"this is version {version()}, which reads layout {LAYOUT}"
        )
    there, here = _flat(file), _flat(own)
    for key in accepted:
        if key not in there:
            raise ConfigError(f"--accept: {key!r} is nothing that is compared.{nearest(key, there)}")
    streams = {_stream(key) for key in there} & {_stream(key) for key in here}
    problems = []
    for key, value in there.items():
        if key in accepted or _stream(key) not in streams or here.get(key) == value:
            continue
        if key.endswith(".digest"):  # known on both sides, or not comparable
            if key in here:
                problems.append(f"{key.removesuffix('.digest')}: weights {here[key]}, the file's are of {value}")
        elif key == "labels":
            problems.append(_other_labels(value, here[key]))
        elif key in here:
            problems.append(f"{key}: {here[key]!r}, and the file's weights were trained with {value!r}")
        elif _section(key) in {_section(other) for other in here}:
            problems.append(f"{key}: not here, and the file's weights were trained with {value!r}")
    return problems


def normalization_problems(file: dict[str, Any], own: Mapping[str, LatentNormalization]) -> dict[str, str]:
    """modality -> how the statistics of the file differ from the run's; those that agree are left out."""
    found = {}
    for name, theirs in file_normalization(file).items():
        if name not in own:
            continue
        ours = own[name]
        if theirs.mean.shape != ours.mean.shape:
            found[name] = f"statistics of shape {tuple(theirs.mean.shape)}, and here {tuple(ours.mean.shape)}"
            continue
        shift = float(((theirs.mean - ours.mean) / theirs.std).abs().max())
        scale = float((ours.std / theirs.std).log().abs().max().exp())
        if shift > CLOSE or scale > 1 + CLOSE:
            found[name] = f"means differ by up to {shift:.3g} deviations, deviations by a factor of up to {scale:.3g}"
    return found


def file_normalization(file: dict[str, Any]) -> dict[str, LatentNormalization]:
    """modality -> statistics that the file's weights were trained with."""
    return {name: LatentNormalization.from_dict(values) for name, values in file.get("normalization", {}).items()}


def _hidden(config: Config, adapters: Adapters, digests: Mapping[str, str], text: str) -> Iterator[tuple[str, Any]]:
    """(dotted setting, value) of all that changes samples and no shape."""
    kind = config.trunk.kind
    yield "trunk.kind", kind
    trunk = to_plain(getattr(config.trunk, kind)) | getattr(config.trunk, kind).shape()._asdict()
    if kind in ("mmdit", "flux2"):
        trunk["rope_axes"] = list(getattr(config.trunk, kind).axes())
    yield from ((f"trunk.{kind}.{name}", trunk[name]) for name in HIDDEN[kind])

    condition = config.condition
    yield "condition.kind", condition.kind
    if isinstance(condition, TextCondition) and condition.encoder is None:
        # A word's rows depend on all of these, and a word's place on none but the length.
        yield from ((f"condition.text.{name}", value) for name, value in sorted(to_plain(condition.text).items()))
    elif isinstance(condition, TextCondition) and condition.encoder is not None:
        # Of the encoder's precision the trunk sees roundings only.
        features = {name: value for name, value in text_settings(condition.encoder).items() if name != "precision"}
        yield from ((f"condition.encoder.{name}", value) for name, value in features.items())
        if text:
            yield "condition.encoder.digest", text

    for modality, (stream, part, settings) in _media(config).items():
        media, key = media_settings(settings), f"media.{modality}"
        yield from ((f"{key}.{name}", media[name]) for name in OF_MEDIA if name in media)
        yield f"{key}.stride", list(adapters[stream][part].autoencoder.spec.stride)  # of a token, over (t, h, w)
        yield f"{key}.autoencoder.kind", settings.autoencoder.kind
        if modality in digests:
            yield f"{key}.autoencoder.digest", digests[modality]
    for name, stream in config.streams.items():
        if stream.parts:
            together = "+".join(part.modality for part in stream.named_parts(name).values())
            yield f"positions.{together}.per_second", stream.positions_per_second


def _media(config: Config) -> dict[str, tuple[str, str, Any]]:
    """modality -> stream, part and media settings of the first part that has it."""
    found: dict[str, tuple[str, str, Any]] = {}
    for stream, name, part in config.parts():
        found.setdefault(part.modality, (stream, name, part.media))
    return found


def _settings(config: Config) -> dict[str, Any]:
    """Whole sections, without places of files."""
    kind, condition = config.trunk.kind, to_plain(config.condition)
    for place in ("path", "tokenizer"):
        (condition.get("encoder") or {}).pop(place, None)
    trunk = to_plain(getattr(config.trunk, kind)) | getattr(config.trunk, kind).shape()._asdict()
    media = {modality: media_settings(settings) for modality, (_, _, settings) in _media(config).items()}
    return {"trunk": {"kind": kind, **trunk}, "condition": condition, "media": media}


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    return {**document["meaning"], "labels": document["labels"]}


def _stream(key: str) -> str:
    """media.video of a setting of videos, positions.video+audio of both in one sample, "" of one that all share."""
    return ".".join(key.split(".")[:2]) if key.startswith(("media.", "positions.")) else ""


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _other_labels(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"labels: {len(ours)} classes, and the file's weights were trained with {len(theirs)}"
    place = next(place for place, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    moved = " in another order" if sorted(theirs) == sorted(ours) else ""
    return f"labels: class {place} is {ours[place]!r}, and {theirs[place]!r} in the file{moved}"
