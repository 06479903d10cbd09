"""What a run is conditioned on: class names of its data, its text encoder, and how the trunk reads either."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from configs.assembly.adapters import located
from configs.schema import Config
from core.trunk.context import ContextConfig
from modalities.base import Source
from modalities.conditioning import TextEncoder
from modalities.conditioning.conditions import ConditionConfig, TextCondition


def class_names(sources: Iterable[Source]) -> list[str]:
    """Every class name of the data, in the order of the trunk's label table."""
    return sorted({label for source in sources for label in source.labels()})


def build_text_encoder(config: Config, root: Path) -> TextEncoder | None:
    """The frozen text encoder of a run, not read yet; None for labels and the byte-level encoder."""
    entry = config.condition.text_encoder()
    return None if entry is None else TextEncoder(entry, located(entry.path, root), located(entry.tokenizer, root))


def context_config(condition: ConditionConfig, classes: int) -> ContextConfig:
    """How the trunk reads what `Conditions` makes."""
    if condition.kind == "label":
        return ContextConfig(kind="labels", num_classes=classes)
    if not isinstance(condition, TextCondition):
        return ContextConfig(kind="none")
    if condition.encoder is not None:
        return ContextConfig(kind="features", feature_dim=condition.encoder.channels())
    rows, words = condition.text.vocabulary, condition.text.max_words
    return ContextConfig(kind="tokens", vocabulary=rows, words=words, encoder_depth=condition.encoder_depth)
