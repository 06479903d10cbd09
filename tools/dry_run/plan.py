"""A run without its weights, for `--dry-run`: its data and networks, with stand-ins for what is not there.

Nothing is fetched. What is there is used: the first record of every stream is read, and frozen networks whose weights
are at hand run on its shapes. A stand-in has the shapes of what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from autoencoders.base import LatentNormalization
from autoencoders.diffusers_weights import HUB_NAME
from autoencoders.pretrained import weights_path
from configs.assembly import Assembly
from configs.assembly import normalization as normalization
from configs.assembly.adapters import located
from configs.assembly.encoders import Encoders, build_encoders, target_channels
from configs.methods import projector_specs
from configs.schema import Config
from core.errors import ConfigError
from core.training.adapter import adapt, train_only
from core.training.loader import Microbatch
from core.types import TokenBatch, map_tensors
from modalities.conditioning.conditions import RawCondition
from modalities.data.batches import RawBatch
from modalities.data.loader import StepDataset
from modalities.targets.build import FAMILIES
from tools.dry_run.flops import META, complete
from tools.dry_run.published import autoencoder_flops, text_flops
from tools.dry_run.standins import open_data

Item = TypeVar("Item")


@dataclass(frozen=True)
class Step:
    """What one microbatch of a stream is, and what the frozen networks that complete it cost.

    Attributes:
        microbatch: completed, on the meta device.
        frozen: network -> its FLOPs.
        missing: network -> why its weights are not at hand; those that are not in `frozen` could not be counted.
    """

    microbatch: Microbatch
    frozen: dict[str, int]
    missing: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        assembly: its trunk has no storage, its encoders are those whose weights are at hand, and its sources have
            stand-ins for the streams in `absent`.
        absent: stream -> why its data cannot be opened, and what is wanted.
        channels: stream -> target -> channels, of the encoders whose weights are not at hand.
        missing: stream -> network -> why its weights are not at hand.
    """

    assembly: Assembly
    absent: dict[str, list[str]]
    channels: dict[str, dict[str, int]]
    missing: dict[str, dict[str, str]]

    def step(self, stream: str) -> Step:
        """Raises ShapeError where something does not fit."""
        assembly, dataset, missing = self.assembly, self.assembly.dataset, dict(self.missing[stream])
        entries = assembly.config.streams[stream].named_parts(stream)
        size, sample = batch_size(dataset, stream), first_sample(dataset, stream)
        shown, counted = [], {}
        for part in sample.parts:
            name = autoencoder_of(entries, part.name)
            if name in missing:  # nothing encodes, so latents of the right size stand in
                shown.append(replace(part, latents=torch.zeros_like(part.noise)))
                entry = entries[part.name]
                assert part.media is not None  # beside latents of an autoencoder with weights
                with suppress(ConfigError):  # diffusers is not there either
                    counted[name] = autoencoder_flops(entry.media.autoencoder, tuple(part.media.shape))
            else:
                shown.append(part)
        one, flops = complete(replace(sample, parts=tuple(shown)), assembly.preprocess)
        counted["encoders"] = flops
        if assembly.text is not None and not stores_text(dataset, stream):
            reason = not_here(assembly.text.path)
            missing |= {"text encoder": reason} if reason else {}
            if (Path(assembly.text.path) / "config.json").is_file():
                assembly.text.check()
            with suppress(ConfigError):
                counted["text encoder"] = text_flops(assembly.text, readable=not reason)
        tokens = sum(one.batch.lengths)
        targets = {
            name: torch.empty(1, tokens, channels, device=META) for name, channels in self.channels[stream].items()
        }
        microbatch = repeated(replace(one, targets={**one.targets, **targets}), size)
        return Step(microbatch, {name: size * count for name, count in counted.items() if count}, missing)


def make_plan(config: Config, root: Path) -> Plan:
    """Everything of a run that needs no weights.

    Args:
        root: what relative paths start from.

    Raises the errors that training would raise before its first step, but for data and weights that are not there.
    """
    assembly = Assembly(config, root)
    config = assembly.config
    absent = open_data(assembly)
    channels, missing = open_frozen(assembly)
    targets = {
        name: {**assembly.encoders[name], **{target: Stub(count) for target, count in channels[name].items()}}
        for name, stream in config.streams.items()
        if stream.encoders
    }
    assembly.projectors = projector_specs(config.alignment, target_channels(targets))
    leave_empty(assembly)
    # Measured where that is cheap, so that data which cannot be normalized is refused here too.
    unit: dict[str, LatentNormalization] = {}
    measured: set[str] = set()
    for stream, name, part in config.parts():
        adapter = assembly.adapters[stream][name]
        encodes = adapter.has_weights and not config.streams[stream].data.holds_latents
        if part.modality in measured:
            continue
        measured.add(part.modality)
        if encodes or stream in absent:
            unit[part.modality] = LatentNormalization(torch.zeros(adapter.channels), torch.ones(adapter.channels))
    assembly.normalization = normalization.measured(config, assembly.streams, unit)
    assembly.dataset.check()
    return Plan(assembly, absent, channels, missing)


@dataclass(frozen=True)
class Stub:
    """What a projector must know of an encoder."""

    channels: int


def leave_empty(assembly: Assembly) -> None:
    """Let the trunk be one without storage, on the meta device."""
    assembly.leave_empty()
    with torch.device("meta"):
        if assembly.config.training.adapter is not None:
            adapt(assembly.trunk, assembly.config.training.adapter, assembly.config.seed)
        if assembly.config.training.adapter is not None or assembly.config.training.trainable:
            train_only(assembly.trunk, assembly.config.training.trainable)


def open_frozen(assembly: Assembly) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, str]]]:
    """(`channels`, `missing`) of a plan; the assembly gets the encoders whose weights are at hand.

    Raises ConfigError for an encoder that is not there and whose channels nobody knows.
    """
    config, root = assembly.config, assembly.root
    encoders: Encoders = {name: {} for name in config.streams}
    channels: dict[str, dict[str, int]] = {name: {} for name in config.streams}
    missing: dict[str, dict[str, str]] = {name: {} for name in config.streams}
    for name, stream in config.streams.items():
        entries = stream.named_parts(name)
        for part, adapter in assembly.adapters[name].items():
            if adapter.has_weights and not stream.data.holds_latents:
                try:
                    refuse_to_fetch(located(weights_path(entries[part].media.autoencoder) or "", root))
                    adapter.load_weights()
                except ConfigError as error:
                    missing[name][autoencoder_of(entries, part)] = one_line(error)
        for target, entry in stream.encoders.items():
            alone = replace(config, streams={name: replace(stream, encoders={target: entry})})
            try:
                refuse_to_fetch(located(entry.path, root))
                encoders[name] |= build_encoders(alone, assembly.adapters, root)[name]
            except ConfigError as error:
                known = FAMILIES[entry.kind].channels
                if entry.path not in known:
                    raise
                channels[name][f"{name}_{target}"] = known[entry.path]
                missing[name][f"encoder {target}"] = one_line(error)
    assembly.encoders = encoders
    return channels, missing


def autoencoder_of(parts: Mapping[str, object], part: str) -> str:
    """How the autoencoder of a part is called among the frozen networks of its stream."""
    return "autoencoder" if len(parts) == 1 else f"autoencoder of {part}"


def not_here(path: str) -> str:
    """Why a frozen network would have to be fetched; "" for what is on this machine, or is no name on the hub."""
    if Path(path).exists() or not HUB_NAME.fullmatch(path):
        return ""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:  # then whoever wants to read it says what is missing
        return ""
    if (Path(HF_HUB_CACHE) / f"models--{path.replace('/', '--')}").is_dir():
        return ""
    return f"{path} is not on this machine; training fetches it from the Hugging Face hub"


def refuse_to_fetch(path: str | None) -> None:
    """Raises ConfigError."""
    if path is not None and (reason := not_here(path)):
        raise ConfigError(reason)


def first_batch(dataset: StepDataset, stream: str) -> RawBatch:
    """One of the size that training sees, made of a stream's first sample alone."""
    one, size = first_sample(dataset, stream), batch_size(dataset, stream)
    tensors = {
        name: _repeated(getattr(one, name), size)
        for name in ("parts", "condition", "student", "teacher", "conditioning_mask")
    }
    counts = {name: count * size for name, count in one.counts.items()}
    return replace(one, keys=one.keys * size, counts=counts, **tensors)


def first_sample(dataset: StepDataset, stream: str) -> RawBatch:
    """A batch of one sample. Its text features have the right size but no content."""
    one = dataset.collate(stream, [dataset.sample(stream, 0, [])], ())
    return replace(one, condition=RawCondition(dataset.conditions.blank(one.condition.known)))


def batch_size(dataset: StepDataset, stream: str) -> int:
    """Samples of a microbatch."""
    return -(-dataset.mix.global_batch[stream] // dataset.accumulate)


def repeated(one: Microbatch, size: int) -> Microbatch:
    """A microbatch of `size` times the only sample of `one`, without memory for the copies."""

    # Positions stay those of one sample, which all share.
    segments = tuple(replace(_repeated(segment, size), ids=segment.ids) for segment in one.batch.segments)
    return replace(
        one,
        batch=TokenBatch(segments, _repeated(one.batch.context, size), one.batch.keys * size),
        drawn=_repeated(one.drawn, size),
        counts={name: count * size for name, count in one.counts.items()},
        targets={name: _repeated(target, size) for name, target in one.targets.items()},
    )


def _repeated(item: Item, size: int) -> Item:
    """Every tensor (1, ...) as (size, ...), without memory for the copies."""
    return map_tensors(item, lambda tensor: tensor.expand(size, *tensor.shape[1:]))


def stores_text(dataset: StepDataset, stream: str) -> bool:
    """Whether a stream's first sample carries stored features of a text encoder."""
    return dataset.sample(stream, 0, []).condition.features is not None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
