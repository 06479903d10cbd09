"""A run without its weights, for `--dry-run`: its data and networks, with stand-ins for what is not there.

Nothing is fetched. What is there is used: the first record of every modality is read, and frozen networks whose weights
are at hand run on its shapes. A stand-in has the shapes of what it stands for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from autoencoders.base import Whitening
from autoencoders.diffusers_weights import HUB_NAME
from configs.build import build_dataset, build_streams, class_names
from configs.networks import (
    build_adapters,
    build_encoders,
    build_text_encoder,
    build_trunk,
    located,
    projector_specs,
)
from configs.schema import Config, ModalitiesConfig
from core.alignment.terms import build_alignment
from core.errors import ConfigError
from core.objective import Objective
from core.training.feed import Microbatch
from core.types import TokenBatch, map_tensors
from modalities.base import ModalityAdapter
from modalities.conditions import RawCondition
from modalities.data.batches import RawBatch
from modalities.data.loader import StepDataset, measure_whitening
from modalities.encoders import Encoder
from modalities.preprocess import DevicePreprocess
from modalities.text import TextEncoder
from tools.flops import META, complete
from tools.published import autoencoder_flops, text_flops
from tools.standins import open_data

# Channels of published encoders, which a projector must know; for others the weights have to be there.
ENCODER_CHANNELS = {
    "facebook/dinov2-small": 384,
    "facebook/dinov2-base": 768,
    "facebook/dinov2-large": 1024,
    "facebook/dinov2-giant": 1536,
    "google/siglip2-base-patch16-256": 768,
    "facebook/vjepa2-vitl-fpc64-256": 1024,
    "depth-anything/Depth-Anything-V2-Small-hf": 384,
    "depth-anything/Depth-Anything-V2-Base-hf": 768,
    "depth-anything/Depth-Anything-V2-Large-hf": 1024,
    "m-a-p/MERT-v1-95M": 768,
    "m-a-p/MERT-v1-330M": 1024,
}


@dataclass(frozen=True)
class Frozen:
    """The frozen networks that a run computes with in every step.

    Attributes:
        encoders: modality -> target name -> those whose weights are at hand.
        channels: modality -> target name -> channels, of those whose weights are not.
        missing: modality -> network -> why its weights are not at hand.
        text: the text encoder, not read; None where there is none.
    """

    encoders: dict[str, dict[str, Encoder]]
    channels: dict[str, dict[str, int]]
    missing: dict[str, dict[str, str]]
    text: TextEncoder | None


@dataclass(frozen=True)
class Step:
    """What one microbatch of a modality is, and what the frozen networks that complete it cost.

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
        trunk: the student, without storage.
        dataset: of which the modalities in `absent` have a stand-in.
        absent: modality -> why its data cannot be opened, and what is wanted.
    """

    config: Config
    trunk: nn.Module
    objective: Objective
    adapters: dict[str, ModalityAdapter]
    dataset: StepDataset
    whitening: dict[str, Whitening]
    labels: list[str]
    absent: dict[str, list[str]]
    frozen: Frozen

    def step(self, modality: str) -> Step:
        """Raises ShapeError where something does not fit."""
        size = batch_size(self.dataset, modality)
        sample = first_sample(self.dataset, modality)
        missing, encoders = dict(self.frozen.missing[modality]), self.frozen.encoders[modality]
        parts = {modality: self.dataset.streams[modality].parts}
        shown = sample
        if "autoencoder" in missing:  # nothing encodes, so latents of the right size stand in
            shown = replace(sample, parts=tuple(replace(p, latents=torch.zeros_like(p.noise)) for p in sample.parts))
        one, flops = complete(shown, DevicePreprocess(parts, self.whitening, {modality: encoders}))
        counted: dict[str, int | None] = {"encoders": flops}
        if "autoencoder" in missing:
            config = self.config.streams[modality].media.autoencoder
            with suppress(ConfigError):  # diffusers is not there either
                counted["autoencoder"] = autoencoder_flops(config, modality, tuple(sample.parts[0].media.shape))
        if self.frozen.text is not None and not stores_text(self.dataset, modality):
            reason = not_here(self.frozen.text.path)
            missing |= {"text encoder": reason} if reason else {}
            with suppress(ConfigError):
                counted["text encoder"] = text_flops(self.frozen.text, readable=not reason)
        tokens = sum(one.batch.lengths)
        targets = {
            name: torch.empty(1, tokens, channels, device=META)
            for name, channels in self.frozen.channels[modality].items()
        }
        microbatch = repeated(replace(one, targets={**one.targets, **targets}), size)
        return Step(microbatch, {name: size * count for name, count in counted.items() if count}, missing)


def make_plan(config: Config, root: Path) -> Plan:
    """Everything of a run that needs no weights.

    Args:
        root: what relative paths start from.

    Raises the errors that training would raise before its first step, but for data and weights that are not there.
    """
    adapters = build_adapters(config, root)
    sources, absent = open_data(config, adapters, root)
    streams = build_streams(config, adapters, root, sources)
    labels = class_names(streams)
    frozen = open_frozen(config, adapters, root)
    stubs = {
        m: {name: SimpleNamespace(channels=c) for name, c in found.items()} for m, found in frozen.channels.items()
    }
    targets = {
        m: {**frozen.encoders[m], **stubs[m]} for m, stream in config.streams.items() if stream.encoders
    }
    projectors = projector_specs(config, targets)
    with torch.device("meta"):
        trunk = build_trunk(config, adapters, labels, projectors)
    whitening = {}
    for name, adapter in adapters.items():
        # Measured where that is cheap, so that data which cannot be whitened is refused here too.
        encodes = adapter.has_weights and not config.streams[name].data.holds_latents
        unit = Whitening(torch.zeros(adapter.channels), torch.ones(adapter.channels))
        whitening[name] = (
            unit if encodes or name in absent else measure_whitening(name, streams[name], name, config.seed)
        )
    dataset = build_dataset(config, streams, labels)
    objective = Objective(build_alignment(config.alignment, trunk.depth))
    return Plan(config, trunk, objective, adapters, dataset, whitening, labels, absent, frozen)


def open_frozen(config: Config, adapters: dict[str, ModalityAdapter], root: Path) -> Frozen:
    """Raises ConfigError for an encoder that is not there and whose channels nobody knows."""
    found = Frozen(*({name: {} for name in adapters} for _ in range(3)), build_text_encoder(config, root))
    for name, stream in config.streams.items():
        if adapters[name].has_weights and not stream.data.holds_latents:
            try:
                refuse_to_fetch(located(stream.media.autoencoder.path, root))
                adapters[name].load_weights()
            except ConfigError as error:
                found.missing[name]["autoencoder"] = one_line(error)
        for target, entry in stream.encoders.items():
            alone = ModalitiesConfig(**{name: replace(stream, encoders={target: entry})})
            one = {name: adapters[name]}
            try:
                refuse_to_fetch(located(entry.path, root))
                found.encoders[name] |= build_encoders(replace(config, modalities=alone), one, root)[name]
            except ConfigError as error:
                if entry.path not in ENCODER_CHANNELS:
                    raise
                found.channels[name][f"{name}_{target}"] = ENCODER_CHANNELS[entry.path]
                found.missing[name][f"encoder {target}"] = one_line(error)
    return found


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


def refuse_to_fetch(path: str) -> None:
    """Raises ConfigError."""
    if reason := not_here(path):
        raise ConfigError(reason)


def first_batch(dataset: StepDataset, modality: str) -> RawBatch:
    """One of the size that training sees, made of a stream's first sample alone."""
    one, size = first_sample(dataset, modality), batch_size(dataset, modality)
    tensors = {
        name: _repeated(getattr(one, name), size) for name in ("parts", "condition", "student", "teacher", "given")
    }
    counts = {name: count * size for name, count in one.counts.items()}
    return replace(one, keys=one.keys * size, counts=counts, **tensors)


def first_sample(dataset: StepDataset, modality: str) -> RawBatch:
    """A batch of one sample. Its text features have the right size but no content."""
    one = dataset.collate(modality, [dataset.sample(modality, 0, [])], ())
    return replace(one, condition=RawCondition(dataset.conditions.blank(one.condition.known)))


def batch_size(dataset: StepDataset, modality: str) -> int:
    """Samples of a microbatch."""
    return dataset.mix.global_batch[modality] // dataset.accumulate


def repeated(one: Microbatch, size: int) -> Microbatch:
    """A microbatch of `size` times the only sample of `one`, without memory for the copies."""

    # Positions stay those of one sample, which all share.
    segments = tuple(replace(_repeated(segment, size), ids=segment.ids) for segment in one.batch.segments)
    return replace(
        one,
        batch=TokenBatch(segments, _repeated(one.batch.context, size), one.batch.keys * size),
        draws=_repeated(one.draws, size),
        counts={name: count * size for name, count in one.counts.items()},
        targets={name: _repeated(target, size) for name, target in one.targets.items()},
    )


def _repeated(item, size: int):
    """Every tensor (1, ...) as (size, ...), without memory for the copies."""
    return map_tensors(item, lambda tensor: tensor.expand(size, *tensor.shape[1:]))


def stores_text(dataset: StepDataset, modality: str) -> bool:
    """Whether a modality's first sample carries stored features of a text encoder."""
    return dataset.sample(modality, 0, []).condition.features is not None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
