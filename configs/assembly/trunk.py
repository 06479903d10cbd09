"""The student of a configuration, initialized from the run's seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from configs.assembly.adapters import Adapters
from configs.assembly.conditions import context_config
from configs.schema import Config
from core.errors import ConfigError
from core.trunk.ddt import DDT
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT
from modalities.generation import Trunk

# trunk.kind -> trunk of images with class labels
CLASS_TRUNKS = {"sit": SiT, "ddt": DDT}


def build_trunk(
    config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]
) -> Trunk:
    """Raises ConfigError for combinations that cannot work."""
    if config.condition.kind == "label" and not labels:
        raise ConfigError("condition.kind: 'label' needs data with class names; these sources have none")
    build = _mmdit if config.trunk.kind == "mmdit" else _class_trunk
    trunk = build(config, adapters, labels, projectors)
    if found := config.alignment.depth_problems(trunk.depth):
        raise ConfigError(f"alignment.{line}" for line in found)
    return trunk


def _mmdit(config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]) -> MMDiT:
    settings = {entry.name: getattr(config.trunk.mmdit, entry.name) for entry in fields(config.trunk.mmdit)}
    channels = {adapter.modality: adapter.channels for parts in adapters.values() for adapter in parts.values()}
    context = context_config(config.condition, len(labels))
    return MMDiT(MMDiTConfig(**settings, channels=channels, context=context), config.seed, projectors)


def _class_trunk(
    config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]
) -> SiT | DDT:
    """SiT or DDT: images of one size, conditioned on classes. Without conditions the null row alone is used."""
    kind, wanted = config.trunk.kind, getattr(config.trunk, config.trunk.kind)
    found = [adapter for parts in adapters.values() for adapter in parts.values()]
    if len(found) != 1 or found[0].modality != "image" or config.condition.kind == "text":
        raise ConfigError(
            f"trunk.kind: {kind!r} needs one stream of images alone and condition.kind: label or none; this run has "
            f"{', '.join(adapters)} and condition.kind: {config.condition.kind}. Trunk mmdit takes any"
        )
    (_, rows, columns), channels = found[0].grid(), found[0].channels
    classes = len(labels) + 1 if config.condition.kind == "label" else wanted.num_classes
    fitting = {"grid": rows, "channels": channels, "num_classes": classes}
    wrong = [f"trunk.{kind}.{name}={value}" for name, value in fitting.items() if getattr(wanted, name) != value]
    if wrong or rows != columns:
        raise ConfigError(
            f"trunk.{kind}: grid {wanted.grid}, channels {wanted.channels}, num_classes {wanted.num_classes} do not "
            f"fit the data: grid {rows} x {columns}, channels {channels}, {len(labels)} classes + 1 null. "
            + (f"Set {' '.join(wrong)}" if rows == columns else f"{kind} needs square images")
        )
    return CLASS_TRUNKS[kind](wanted, config.seed, projectors)
