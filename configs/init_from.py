"""Where the weights of a new run come from: `selfflow train ... --init-from RUN|FILE`.

RUN gives the EMA weights of its newest intact checkpoint, FILE the weights of any kind that `selfflow import` reads.
The student and the teacher of the new run both start from them, with a new optimizer, at step 0. Names and shapes are
compared in core/training/initialize.py; here is compared what shapes cannot show, where the source tells it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoders.base import LatentNormalization
from configs.assembly.adapters import build_adapters
from configs.assembly.latents import text_settings
from configs.published import published_problems
from configs.schema import Config, TrunkConfig
from configs.weight_metadata import file_normalization, meaning_problems, weights_meaning
from core.errors import CheckpointError, ConfigError
from core.training.checkpoint import CheckpointStore, digest
from core.training.config import to_plain, validated, value_at
from core.training.history import read_run
from core.training.initialize import initialize, matching
from core.training.say import say
from core.trunk.foreign import KINDS, WeightFile, detect, is_folder, read_file, read_folder
from core.trunk.foreign.folders import check_types
from core.trunk.foreign.kinds import check_arguments
from core.trunk.foreign.lora import merged
from core.trunk.foreign.strict import cast
from modalities.conditioning import TextEncoderConfig
from modalities.generation import Trunk

# Settings that give the same shapes and another meaning.
TRUNK = ("heads", "head_heads", "rope_theta", "time_scale", "text_time", "patch", "pos_embed", "text_rows")
TOKENS = (
    "autoencoder.kind",
    "patch",
    "patch_frames",
    "first_frame_alone",
    "hop",
    "exponent",
    "sample_rate",
    "channels",
)
TEXT = ("vocabulary", "ngrams", "rows_per_word")
# The layers that read or write what such settings are about: where they start anew, the settings may differ.
CONDITION_PARTS = ("context", "y_embedder")


@dataclass(frozen=True)
class Initial:
    """What the command line says: the source, and patterns of what may differ (core/training/initialize.py).

    With `by_modality`, layers of modalities and projectors that one side lacks are such, and need not be named.
    """

    path: Path
    drop: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    by_modality: bool = False


@dataclass(frozen=True)
class WeightSource:
    """Weights to start from.

    Attributes:
        name: for messages.
        weights: tensors by name.
        origin: {source, kind, step of a run}, for run.json.
        extra: what a checkpoint stores besides its tensors; {} where nothing is known.
        file: where the weights are those of a file, whose names may be another project's.
    """

    name: str
    weights: dict[str, Tensor]
    origin: dict[str, Any]
    extra: dict = field(default_factory=dict)
    file: WeightFile | None = None


def is_resumed(run: Path, initial: Initial | None, step: int | None) -> bool:
    """Whether the run resumes from its own checkpoint, so that `initial` is not read (again).

    Raises ConfigError where the run did not start from `initial`, and where it should have and did not.
    """
    known = read_run(run).get("init")
    if step is None:
        if known and initial is None:
            raise ConfigError(
                f"{run} was to start from {known['source']} and has no checkpoint yet; repeat the whole command, with "
                "--init-from, or use another run folder"
            )
        return False
    if initial is not None and (known is None or known["source"] != str(initial.path.resolve())):
        began = f"started from {known['source']}" if known else "did not start from other weights"
        raise ConfigError(
            f"--init-from: {run} has a checkpoint of step {step} already and {began}; start a new run in another folder"
        )
    return True


def read_source(path: Path) -> WeightSource:
    """Weights of a run folder, of a folder of diffusers or of a file. Raises CheckpointError where there are none."""
    where = str(path.resolve())
    if is_folder(path):
        file = read_folder(path)
        kind = detect(file.state, file.source)
        return WeightSource(f"{file.source} (kind {kind})", file.state, {"source": where, "kind": kind}, file=file)
    if path.is_dir():
        store = CheckpointStore(path / "checkpoints")
        step = store.latest(("teacher",))
        if step is None:
            raise CheckpointError(f"--init-from: {path} holds no intact checkpoint (looked in {store.root})")
        origin = {"source": where, "kind": "run", "step": step}
        weights, extra = store.load_weights(step, "teacher"), store.extra(step)
        if adapter := extra["config"]["training"].get("adapter"):  # which becomes part of the weights
            weights = cast(merged(weights, adapter["alpha"] / adapter["rank"]), torch.float32)
        return WeightSource(f"{path} (step {step})", weights, origin, extra)
    file = read_file(path)
    check_types(file.state, file.source)
    kind = detect(file.state, file.source)
    check_arguments(KINDS[kind], file.arguments, file.source)
    return WeightSource(f"{file.source} (kind {kind})", file.state, {"source": where, "kind": kind}, file=file)


def check_meaning(source: WeightSource, initial: Initial, config: Config, labels: list[str]) -> None:
    """Raise ConfigError for settings of the source's run that give its weights another meaning here.

    Those of layers that are left out of the source do not count. Of a file is known what it says of its weights
    (configs/weight_metadata.py), and of another project's nothing but its tensors.
    """
    said = {} if source.file is None else source.file.meaning
    if source.file is not None and (found := published_problems(source.file, source.origin["kind"], config.trunk)):
        raise ConfigError([f"--init-from: {source.name}: {line}" for line in found])
    if not source.extra and not said:
        return
    dropped = matching(source.weights, initial.drop, f"--init-drop: {source.name}")
    taken = [name for name in source.weights if name not in dropped]
    found = _file_differences(said, taken, config, labels) if said else _run_differences(source, taken, config, labels)
    if found:
        raise ConfigError(
            [f"--init-from: {source.name}: {line}" for line in found]
            + ["Use its settings, or start the layers that read them anew (--init-drop PART --init-fresh PART)."]
        )


def _run_differences(source: WeightSource, taken: list[str], config: Config, labels: list[str]) -> list[str]:
    theirs, ours = source.extra["config"], to_plain(config)
    found = _trunk_differences(theirs, ours)
    there, here = media_of(theirs), media_of(ours)
    for modality in here:
        if modality in there and _takes(taken, media_parts(modality)):
            found += _media_differences(there, here, modality)
    found += _position_differences(theirs, ours)
    if _takes(taken, CONDITION_PARTS):
        found += _condition_differences(theirs, ours, source.extra.get("labels", []), labels)
    return found


def _file_differences(said: dict[str, Any], taken: list[str], config: Config, labels: list[str]) -> list[str]:
    own = weights_meaning(config, build_adapters(config, Path()), labels, {}, {}, "")

    def anew(key: str) -> bool:
        """Whether no layer that is taken reads it; frames a second may differ here, as between runs."""
        if key.startswith("media."):
            return key.endswith(".fps") or not _takes(taken, media_parts(key.split(".")[1]))
        return key.split(".")[0] in ("condition", "labels") and not _takes(taken, CONDITION_PARTS)

    return meaning_problems(said, own, [key for key in (*said.get("meaning", {}), "labels") if anew(key)])


def media_parts(modality: str) -> tuple[str, ...]:
    """Layers that read and write the tokens of a modality."""
    return f"media_in.{modality}", f"media_out.{modality}", "x_embedder", "s_embedder", "final_layer"


def kept_normalization(source: WeightSource, config: Config) -> dict[str, LatentNormalization]:
    """Latent statistics of the source for the modalities whose tokens mean the same: what its weights are used to."""
    if source.file is not None and source.file.meaning:
        found = _file_differences(source.file.meaning, list(source.weights), config, [])
        ours = {part.modality for _, _, part in config.parts()}
        other = {modality for modality in ours for line in found if f"media.{modality}." in line}
        return {name: values for name, values in file_normalization(source.file.meaning).items() if name not in other}
    stored, kept = source.extra.get("normalization", {}), {}
    there, here = (media_of(plain) for plain in (source.extra.get("config", {}), to_plain(config)))
    for modality in here:
        if modality in stored and not _media_differences(there, here, modality):
            kept[modality] = LatentNormalization.from_dict(stored[modality])
    return kept


def start_from(source: WeightSource, initial: Initial, trunk: Trunk) -> dict[str, Any]:
    """Copy the weights into the student; what run.json says of it. Raises CheckpointError where they do not fit."""
    weights, drop, fresh = source.weights, initial.drop, initial.fresh
    if source.file is not None:
        dropped = matching(weights, drop, f"--init-drop: {source.name}")  # by the names that the file has
        left = {name: value for name, value in weights.items() if name not in dropped}
        numbered = any(name.startswith("projectors.") for name in left)
        kind = KINDS[source.origin["kind"]]
        if kind.absent:  # of published networks, in bfloat16: float32 has all of its numbers
            left = cast(left, next(trunk.parameters()).dtype)
        weights = kind.read(left, list(trunk.projectors) if numbered else [], trunk)
        drop, fresh = (), (*fresh, *kind.absent)
    if initial.by_modality:
        own = set(trunk.state_dict())
        drop = (*drop, *(name for name in weights if name not in own and _is_optional(name)))
        fresh = (*fresh, *(name for name in own if name not in weights and _is_optional(name)))
    done = initialize(trunk, weights, source.name, drop, fresh)
    for what, names in (("left out of it", done.dropped), ("initialized", done.fresh)) if initial.by_modality else ():
        if names:
            say(f"{source.name}: {what}: {', '.join(dict.fromkeys(_layer(name) for name in names))}")
    return source.origin | {
        "weights": digest({"teacher": weights})["teacher"],
        "drop": list(done.dropped) if initial.by_modality else list(initial.drop),
        "fresh": list(initial.fresh),
        "fresh_tensors": list(done.fresh),
    }


def _layer(name: str) -> str:
    """media_in.audio.weight -> media_in.audio"""
    return name.rpartition(".")[0]


def _is_optional(name: str) -> bool:
    """Whether a tensor belongs to one modality or to an alignment term, without which a trunk is still whole."""
    return name.split(".")[0] in ("media_in", "media_out", "projector", "projectors")


def _takes(names: list[str], parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for name in names for part in parts)


def _trunk_differences(theirs: dict, ours: dict) -> list[str]:
    kinds = theirs["trunk"]["kind"], ours["trunk"]["kind"]
    if kinds[0] != kinds[1]:
        return [f"trunk.kind: {kinds[0]!r} there, {kinds[1]!r} here"]
    made = [getattr(validated(TrunkConfig, plain["trunk"]), kinds[0]) for plain in (theirs, ours)]
    seen = []
    for settings in made:
        plain = {entry.name: getattr(settings, entry.name) for entry in fields(settings)} | settings.shape()._asdict()
        seen.append(plain | ({"rope_axes": settings.axes()} if hasattr(settings, "axes") else {}))
    there, here = seen
    return [
        f"trunk.{kinds[0]}.{name}: {there[name]!r} there, {here[name]!r} here"
        for name in (*TRUNK, "rope_axes")
        if name in there and there[name] != here[name]
    ]


def media_of(plain: dict) -> dict[str, tuple[str, dict]]:
    """modality -> (key, media settings) of the first part that has it, of a plain configuration."""
    found: dict[str, tuple[str, dict]] = {}
    for stream, entry in plain.get("streams", {}).items():
        for name, part in (entry["parts"] or {entry["modality"] or stream: entry}).items():
            key = f"streams.{stream}.parts.{name}.media" if entry["parts"] else f"streams.{stream}.media"
            found.setdefault(part["modality"] or name, (key, part["media"]))
    return found


def _position_differences(theirs: dict, ours: dict) -> list[str]:
    """How positions differ between streams with the same modalities in one sample."""
    there, here = _per_second(theirs), _per_second(ours)
    return [
        f"{key}: {there[together][1]!r} there, {value!r} here"
        for together, (key, value) in here.items()
        if together in there and there[together][1] != value
    ]


def _per_second(plain: dict) -> dict[tuple[str, ...], tuple[str, float | None]]:
    """Modalities of one sample -> (key, positions in a second) of the first stream with these parts."""
    found: dict[tuple[str, ...], tuple[str, float | None]] = {}
    for stream, entry in plain.get("streams", {}).items():
        if entry["parts"]:
            together = tuple(part["modality"] or name for name, part in entry["parts"].items())
            key = f"streams.{stream}.positions_per_second"
            found.setdefault(together, (key, entry["positions_per_second"]))
    return found


def _media_differences(theirs: dict, ours: dict, modality: str) -> list[str]:
    if modality not in theirs:
        return []
    (_, there), (key, here) = theirs[modality], ours[modality]
    values = {name: (value_at(there, name), value_at(here, name)) for name in TOKENS}
    return [f"{key}.{name}: {a!r} there, {b!r} here" for name, (a, b) in values.items() if a != b]


def _condition_differences(theirs: dict, ours: dict, known: list[str], labels: list[str]) -> list[str]:
    there, here = theirs["condition"], ours["condition"]
    if there["kind"] != here["kind"]:
        return [f"condition.kind: {there['kind']!r} there, {here['kind']!r} here"]
    if here["kind"] != "text":
        return _label_differences(known, labels) if here["kind"] == "label" else []
    if (there["encoder"] is None) != (here["encoder"] is None):
        return ["condition.encoder: a frozen text encoder on one side, and bytes on the other"]
    if here["encoder"] is None:
        return [
            f"condition.text.{name}: {there['text'].get(name)!r} there, {here['text'].get(name)!r} here"
            for name in TEXT
            if there["text"].get(name) != here["text"].get(name)
        ]
    before, after = (text_settings(validated(TextEncoderConfig, plain["encoder"])) for plain in (there, here))
    return [
        f"condition.encoder.{name}: {before[name]!r} there, {after[name]!r} here"
        for name in ("kind", "layers", "width")
        if before[name] != after[name]
    ]


def _label_differences(known: list[str], labels: list[str]) -> list[str]:
    if known == labels:
        return []
    if len(known) != len(labels):
        return [f"labels: {len(known)} classes there, {len(labels)} here; the rows of the label table are classes"]
    first = next(place for place, pair in enumerate(zip(known, labels, strict=True)) if len(set(pair)) > 1)
    return [f"labels: class {first} is {known[first]!r} there, {labels[first]!r} here"]
