"""The networks of a configuration: adapters with their autoencoders, frozen encoders, the trunk and its projectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import nn

from autoencoders.base import Whitening
from configs.schema import Config
from core.errors import CheckpointError, ConfigError
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SiT
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import ModalityAdapter
from modalities.conditions import ConditionConfig
from modalities.encoders import Encoder, build_encoder
from modalities.image import ImageAdapter, ImageConfig
from modalities.prepare import DevicePrepare
from modalities.text import TextEncoder
from modalities.video import VideoAdapter, VideoConfig

# modality -> (its settings, what they build)
ADAPTERS = {
    "image": (ImageConfig, ImageAdapter),
    "video": (VideoConfig, VideoAdapter),
    "audio": (AudioConfig, AudioAdapter),
}

# trunk.kind -> trunk of pictures with class labels
CLASS_TRUNKS = {"sit": SiT, "ddt": DDT}


def build_adapters(config: Config, root: Path) -> dict[str, ModalityAdapter]:
    """`root` is what relative paths of weights start from, where they exist there; else they are names on the hub."""
    adapters = {}
    for name, stream in config.modalities.streams().items():
        autoencoder = replace(stream.media.autoencoder, path=located(stream.media.autoencoder.path, root))
        adapters[name] = ADAPTERS[name][1](replace(stream.media, autoencoder=autoencoder))
    return adapters


def located(path: str | None, root: Path) -> str | None:
    """A path of weights: below `root` where it exists there, else unchanged."""
    return str(root / path) if path and (root / path).exists() else path


def load_autoencoders(adapters: dict[str, ModalityAdapter]) -> None:
    """Read the weights of all that have some. Raises ConfigError where they are missing or do not fit."""
    for name, adapter in adapters.items():
        with named("autoencoder", f"modalities.{name}.media.autoencoder"):
            adapter.load_weights()


def encoding_adapters(config: Config, adapters: dict[str, ModalityAdapter]) -> dict[str, ModalityAdapter]:
    """Those that encode in training; the data of the other modalities are latents already."""
    return {name: adapters[name] for name, s in config.modalities.streams().items() if not s.data.holds_latents}


@contextmanager
def named(part: str, key: str) -> Iterator[None]:
    """Errors about a part, which calls itself `part`, under the key of its section in the configuration."""
    try:
        yield
    except ConfigError as error:
        fields_of = rf"(?<![\w./]){part}\.(?=(kind|path|layer|resample|precision|posterior)\b)"
        raise ConfigError(re.sub(fields_of, f"{key}.", line) for line in error.problems) from error
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def build_encoders(config: Config, adapters: dict[str, ModalityAdapter], root: Path) -> dict[str, dict[str, Encoder]]:
    """modality -> target name -> frozen encoder. Raises ConfigError where weights are missing or do not fit."""
    encoders: dict[str, dict[str, Encoder]] = {}
    for modality, stream in config.modalities.streams().items():
        adapter, rate = adapters[modality], getattr(stream.media, "sample_rate", None)
        size = {"image": adapter.size[1:], "video": adapter.size, "audio": adapter.size[:1]}[modality]
        stride = adapter.autoencoder.spec.stride[0]
        for name, entry in stream.encoders.items():
            entry = replace(entry, path=located(entry.path, root))
            with named("encoder", f"modalities.{modality}.encoders.{name}"):
                encoder = build_encoder(entry, modality, size, adapter.grid(), stride, rate)
            encoders.setdefault(modality, {})[f"{modality}_{name}"] = encoder
    return encoders


def build_text_encoder(config: Config, root: Path) -> TextEncoder | None:
    """The frozen text encoder of a run, not read yet; None for labels and the byte-level encoder."""
    entry = config.condition.encoder
    return None if entry is None else TextEncoder(entry, located(entry.path, root), located(entry.tokenizer, root))


def projector_specs(config: Config, encoders: dict[str, dict[str, Encoder]]) -> dict[str, ProjectorSpec]:
    """The projectors that the alignment terms need of the trunk, by name."""
    specs = {}
    if config.alignment.ema_teacher is not None:
        specs[TEACHER] = ProjectorSpec(config.alignment.ema_teacher.projector)
    for targets in encoders.values():
        kind = config.alignment.external.projector
        specs |= {name: ProjectorSpec(kind, encoder.channels) for name, encoder in targets.items()}
    return specs


def build_trunk(
    config: Config,
    adapters: dict[str, ModalityAdapter],
    labels: list[str],
    projectors: dict[str, ProjectorSpec],
) -> nn.Module:
    """The student, initialised from the run's seed. Raises ConfigError for combinations that cannot work."""
    if config.condition.kind == "label" and not labels:
        raise ConfigError("condition.kind: 'label' needs data with class names; these sources have none")
    if config.trunk.kind == "mmdit":
        trunk = build_mmdit(config, adapters, labels, projectors)
    else:
        trunk = build_class_trunk(config, adapters, labels, projectors)
    if found := config.alignment.depth_problems(trunk.depth):
        raise ConfigError(f"alignment.{line}" for line in found)
    return trunk


def build_mmdit(
    config: Config, adapters: dict[str, ModalityAdapter], labels: list[str], projectors: dict[str, ProjectorSpec]
) -> nn.Module:
    settings = {entry.name: getattr(config.trunk.mmdit, entry.name) for entry in fields(config.trunk.mmdit)}
    channels = {name: adapter.channels for name, adapter in adapters.items()}
    context = context_config(config.condition, len(labels))
    return MMDiT(MMDiTConfig(**settings, channels=channels, context=context), config.seed, projectors)


def build_class_trunk(
    config: Config, adapters: dict[str, ModalityAdapter], labels: list[str], projectors: dict[str, ProjectorSpec]
) -> nn.Module:
    """SiT or DDT: pictures of one size, conditioned on classes. Without conditions the null row alone is used."""
    kind = config.trunk.kind
    if set(adapters) != {"image"} or config.condition.kind == "text":
        raise ConfigError(
            f"trunk.kind: {kind!r} needs the image modality alone and condition.kind: label or none; this run has "
            f"{', '.join(adapters)} and condition.kind: {config.condition.kind}. Trunk mmdit takes any"
        )
    (_, rows, columns), wanted = adapters["image"].grid(), getattr(config.trunk, kind)
    channels = adapters["image"].channels
    classes = len(labels) + 1 if config.condition.kind == "label" else wanted.num_classes
    fitting = {"grid": rows, "channels": channels, "num_classes": classes}
    wrong = [f"trunk.{kind}.{name}={value}" for name, value in fitting.items() if getattr(wanted, name) != value]
    if wrong or rows != columns:
        raise ConfigError(
            f"trunk.{kind}: grid {wanted.grid}, channels {wanted.channels}, num_classes {wanted.num_classes} do not "
            f"fit the data: grid {rows} x {columns}, channels {channels}, {len(labels)} classes + 1 null. "
            + (f"Set {' '.join(wrong)}" if rows == columns else f"{kind} needs square pictures")
        )
    return CLASS_TRUNKS[kind](wanted, config.seed, projectors)


def context_config(condition: ConditionConfig, classes: int) -> ContextConfig:
    """How the trunk reads what `Conditions` makes."""
    if condition.kind == "none":
        return ContextConfig(kind="none")
    if condition.kind == "label":
        return ContextConfig(kind="labels", num_classes=classes)
    if condition.encoder is not None:
        return ContextConfig(kind="features", feature_dim=condition.encoder.channels())
    rows, words = condition.text.vocabulary, condition.text.max_words
    return ContextConfig(kind="tokens", vocabulary=rows, words=words, encoder_depth=condition.encoder_depth)


def device_prepare(
    adapters: dict[str, ModalityAdapter],
    whitening: dict[str, Whitening],
    encoders: dict[str, dict[str, Encoder]],
    device: torch.device,
    text: TextEncoder | None = None,
) -> DevicePrepare | None:
    """What completes microbatches on the device, or None when the loader does all of it."""
    if not encoders and text is None and not any(adapter.has_weights for adapter in adapters.values()):
        return None
    moved = {m: {name: encoder.to(device) for name, encoder in by_name.items()} for m, by_name in encoders.items()}
    return DevicePrepare(adapters, whitening, moved, None if text is None else text.to(device))
