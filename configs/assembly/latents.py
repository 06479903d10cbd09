"""What stored latents must have in common with the configuration that trains on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoencoders.pretrained import weights_path
from configs.assembly.adapters import Adapters, build_adapters, media_key, named
from configs.schema import Config
from core.errors import ConfigError
from core.training.config import from_plain, to_plain
from modalities.base import ModalityAdapter, Source
from modalities.conditioning import TextEncoderConfig
from modalities.latents.format import Manifest, StoredPart, stored_manifests
from modalities.table import modality

# Settings of media that no grid shows, and that change what latents mean.
MEANING = ("fps", "first_frame_alone", "sample_rate", "hop", "exponent", "rate", "rotation")
# Settings of what is done to latents when they are read, which stored ones do not depend on.
ON_READING = ("statistics", "normalize", "keep", "sizes")


def media_settings(media: Any) -> dict[str, Any]:
    """What latents depend on of the section `media`, without its autoencoder, but with the values of what was left out
    of that one's settings."""
    found = to_plain(media)
    del found["autoencoder"]
    found = {key: value for key, value in found.items() if key not in ON_READING}
    return found | media.autoencoder.own_settings(media)


def text_settings(config: TextEncoderConfig) -> dict[str, Any]:
    """What the features of a frozen text encoder depend on besides its weights."""
    return {
        "kind": config.kind,
        "max_tokens": config.length(),
        "layers": list(config.taken_layers()),
        "precision": config.precision,
        "width": config.channels(),
    }


def check_latents(
    config: Config, sources: Mapping[str, Source], adapters: Adapters, root: Path, section: str = "data"
) -> None:
    """Raise ConfigError for latents of another autoencoder or size, and for text features of another encoder.

    Args:
        sources: stream -> what its `section` opens.

    Weights are read, and compared, only where `autoencoder.path` is a local one: training on latents needs none.
    """
    problems: list[str] = []
    for name, source in sources.items():
        stream, where, manifests = config.streams[name], f"streams.{name}.{section}", stored_manifests(source)
        found = [f"{where}: {line}" for manifest in manifests for line in missing_parts(adapters[name], manifest)]
        for part, entry in {} if found else stream.named_parts(name).items():
            stored, key = [manifest.parts[part] for manifest in manifests], media_key(stream, name, part)
            for one in stored:
                found += [f"{key}{line}" for line in differences(entry.media, adapters[name][part], one)]
            if len({one.autoencoder["digest"] for one in stored}) > 1:
                found.append(f"{where}: its {part} latents were encoded with different weights")
        for manifest in manifests:
            found += text_differences(config, where, manifest)
        problems += found
    if not problems:
        problems += other_weights(config, latent_digests(sources, adapters), root)
    if problems:
        raise ConfigError([*problems, "Change these settings, or encode the media again with `selfflow encode`."])


def latent_digests(sources: Mapping[str, Source], adapters: Adapters) -> dict[str, dict[str, str]]:
    """stream -> part -> digest of the autoencoder of its latents, "" for one without weights; none for media."""
    stored = {name: stored_manifests(source) for name, source in sources.items()}
    return {
        name: {part: manifests[0].parts[part].autoencoder["digest"] for part in adapters[name]}
        for name, manifests in stored.items()
        if manifests
    }


def text_digest(config: Config, sources: dict[str, Source]) -> str:
    """Digest of the text encoder whose stored features are trained on; "" where none are.

    Raises ConfigError where features of different weights lie side by side.
    """
    if config.condition.text_encoder() is None:
        return ""
    manifests = [manifest for source in sources.values() for manifest in stored_manifests(source)]
    found = sorted({manifest.text.digest for manifest in manifests if manifest.text is not None})
    if len(found) > 1:
        raise ConfigError(
            f"condition.encoder: the data hold text features of different weights (digests {', '.join(found)}); encode "
            "all media with one text encoder"
        )
    return "".join(found)


def missing_parts(adapters: Mapping[str, ModalityAdapter], manifest: Manifest) -> list[str]:
    """A line for every part of a stream that stored samples do not have; what they have beyond is not read."""
    found = []
    for name, adapter in adapters.items():
        part = manifest.parts.get(name)
        if part is None or part.modality != adapter.modality:
            there = ", ".join(f"{key} ({own.modality})" for key, own in manifest.parts.items())
            plural = "s" * (len(manifest.parts) > 1)
            found.append(f"its samples have the part{plural} {there}, and no {name} ({adapter.modality})")
    return found


def differences(media: Any, adapter: ModalityAdapter, stored: StoredPart) -> Iterator[str]:
    """The end of a line, after the key of the media settings, for every setting that differs from the latents'."""
    if media.autoencoder.kind != stored.autoencoder["kind"]:
        yield f".autoencoder.kind: {media.autoencoder.kind!r}, and the latents are of {stored.autoencoder['kind']!r}"
        return
    here = media_settings(media)
    if adapter.grid() != stored.grid or adapter.channels != stored.channels:
        seen, there = (
            f"{' x '.join(map(str, grid))} tokens (t, h, w) of {channels} channels"
            for grid, channels in ((adapter.grid(), adapter.channels), (stored.grid, stored.channels))
        )
        made = {key: value for key, value in stored.media.items() if here.get(key) != value}
        yield f": makes {seen}, and the latents are {there}; they were made with {made}"
    for key in MEANING:
        seen, there = here.get(key), stored.media.get(key)
        if seen != there:
            yield f".{key}: {seen}, and the latents were made with {there}"
    if adapter.posterior_noise and not stored.deviation:
        yield ".autoencoder.posterior: 'sample', and the latents were stored without a deviation; set it to mean"


def text_differences(config: Config, where: str, manifest: Manifest) -> list[str]:
    """Lines for stored text features that are not those of `condition.encoder`. Without an encoder none are read."""
    encoder = config.condition.text_encoder()
    if encoder is None or manifest.text is None:
        return []
    wanted = text_settings(encoder)
    return [
        f"condition.encoder.{key}: {wanted[key]!r}, and the text features of {where} were made with {stored!r}"
        for key, stored in manifest.text.encoder.items()
        if wanted[key] != stored
    ]


def other_weights(config: Config, digests: dict[str, dict[str, str]], root: Path) -> list[str]:
    """Lines for autoencoders that are at hand and are not those of the latents."""
    problems = []
    for stream, adapters in build_adapters(config, root).items():  # others than the run's: these are forgotten again
        for part, adapter in adapters.items():
            path, known = weights_path(adapter.config.autoencoder), digests.get(stream, {}).get(part)
            if not known or not path or not Path(path).expanduser().exists():
                continue
            key = f"{media_key(config.streams[stream], stream, part)}.autoencoder"
            with named("autoencoder", key):
                seen = adapter.autoencoder.digest()
            if seen != known:
                problems.append(
                    f"{key}.path: the weights at {path} (digest {seen}) are not those of the latents (digest {known})"
                )
    return problems


def stored_adapter(name: str, part: StoredPart, weights: str | None = None) -> ModalityAdapter:
    """The adapter that the latents of a part were made with, to decode them.

    Args:
        name: of the part, for messages.
        weights: path of the autoencoder's weights, in place of where they were.
    """
    kind = modality(part.modality)
    autoencoder = {key: value for key, value in part.autoencoder.items() if key != "digest" and value is not None}
    if weights is not None:
        autoencoder["path"] = weights
    adapter = kind.adapter(from_plain(kind.settings, {**part.media, "autoencoder": autoencoder}))
    with named("autoencoder", f"manifest.json: parts.{name}.autoencoder"):
        adapter.autoencoder.expect(part.autoencoder["digest"])
        adapter.load_weights()
    return adapter
