"""The student of a configuration, initialized from the run's seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from configs.assembly.adapters import Adapters
from configs.assembly.conditions import context_config
from configs.schema import Config
from core.errors import ConfigError
from core.trunk.ddt import DDT
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT
from core.trunk.wan import Wan, WanConfig
from modalities.conditioning import TextEncoder, TextEncoderConfig
from modalities.generation import Trunk

# trunk.kind -> trunk of images with class labels
CLASS_TRUNKS = {"sit": SiT, "ddt": DDT}
EMPTY_TEXT = ("context.reader.null", "null")  # buffers of trunks that have the features of the empty text


def build_trunk(
    config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]
) -> Trunk:
    """Raises ConfigError for combinations that cannot work."""
    if config.condition.kind == "label" and not labels:
        raise ConfigError("condition.kind: 'label' needs data with class names; these sources have none")
    build = {"mmdit": _mmdit, "flux2": _flux2, "wan": _wan}.get(config.trunk.kind, _class_trunk)
    trunk = build(config, adapters, labels, projectors)
    if found := config.alignment.depth_problems(trunk.depth):
        raise ConfigError(f"alignment.{line}" for line in found)
    return trunk


def _mmdit(config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]) -> MMDiT:
    settings = {entry.name: getattr(config.trunk.mmdit, entry.name) for entry in fields(config.trunk.mmdit)}
    context = context_config(config.condition, len(labels))
    return MMDiT(MMDiTConfig(**settings, channels=_channels(adapters), context=context), config.seed, projectors)


def _flux2(config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]) -> MMDiT:
    settings = config.trunk.flux2
    wanted = None if settings.width is not None else settings.shape().text_width
    text = _text_encoder(config, "qwen3", wanted, settings.text_rows)
    return MMDiT(settings.trunk_config(_channels(adapters), text.channels()), config.seed, projectors)


def _wan(config: Config, adapters: Adapters, labels: list[str], projectors: Mapping[str, ProjectorSpec]) -> Wan:
    settings = config.trunk.wan
    text = _text_encoder(config, "umt5", None if settings.width is not None else 4096, settings.text_rows)
    own = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return Wan(WanConfig(**own, channels=_channels(adapters), text_width=text.channels()), config.seed, projectors)


def _channels(adapters: Adapters) -> dict[str, int]:
    return {adapter.modality: adapter.channels for parts in adapters.values() for adapter in parts.values()}


def _text_encoder(config: Config, kind: str, width: int | None, rows: int) -> TextEncoderConfig:
    """Of a run whose trunk reads features alone; `width` is what the published size reads, None for another size."""
    trunk, encoder = config.trunk.kind, config.condition.text_encoder()
    if encoder is None:
        raise ConfigError(
            f"trunk.kind: {trunk!r} reads features of a frozen text encoder; set condition.encoder={{kind: {kind}, "
            "path: FOLDER}"
        )
    found = []
    if width is not None and encoder.channels() != width:
        size = getattr(config.trunk, trunk).size
        found.append(
            f"condition.encoder.width: {encoder.channels()} (kind {encoder.kind!r}), but trunk.{trunk}.size {size!r} "
            f"reads features of {width} channels, those of {kind}; set kind, layers and width to fit"
        )
    if encoder.length() > rows:
        found.append(
            f"condition.encoder.max_tokens: {encoder.length()} is more than trunk.{trunk}.text_rows, {rows}; lower it"
        )
    if found:
        raise ConfigError(found)
    return encoder


def empty_text(trunk: Trunk, text: TextEncoder | None, dropout: float) -> Tensor | None:
    """The features (S, Dc) of the empty text for a published trunk, which has them in place of a learned null token;
    None for other trunks.

    Where nothing is ever dropped they may be missing: then only guidance needs them.

    Raises:
        ConfigError: they are needed, and there is no text encoder to make them.
    """
    if _empty_text_rows(trunk) is None or text is None:
        return None
    if not text.path and not dropout:
        return None
    return text.encode([""])[0]


def set_empty_text(trunk: Trunk, features: Tensor | None) -> None:
    """Put `empty_text` into the trunk; None changes nothing."""
    rows = _empty_text_rows(trunk)
    if rows is not None and features is not None:
        rows.zero_()[: len(features)] = features.to(rows)


def _empty_text_rows(trunk: Trunk) -> Tensor | None:
    buffers = dict(trunk.named_buffers())
    return next((buffers[name] for name in EMPTY_TEXT if name in buffers), None)


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
