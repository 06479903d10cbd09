"""What a run's text limits make of captions and prompts."""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import Config
from modalities.base import Source
from modalities.conditioning import TextEncoder, TextLimit, token_limit, word_limit
from modalities.conditioning.conditions import ConditionConfig, TextCondition
from modalities.data.caption_lengths import CaptionLengths, caption_lengths


def text_limit(condition: ConditionConfig, encoder: TextEncoder | None) -> TextLimit | None:
    """The limit of a run's texts; None for a run without. Of a frozen encoder the tokenizer is read when it counts."""
    if not isinstance(condition, TextCondition):
        return None
    return word_limit(condition.text) if encoder is None else token_limit(encoder.length, encoder.count)


def caption_report(
    config: Config, sources: Mapping[str, Source], encoder: TextEncoder | None
) -> dict[str, CaptionLengths]:
    """stream -> the lengths of its captions; without those that have none.

    Raises ConfigError where captions are to be counted and the tokenizer is missing.
    """
    limit = text_limit(config.condition, encoder)
    if limit is None:
        return {}
    found = {name: caption_lengths(source, name, config.seed, limit) for name, source in sources.items()}
    return {name: lengths for name, lengths in found.items() if lengths is not None}


def caption_warnings(config: Config, sources: Mapping[str, Source], encoder: TextEncoder | None) -> list[str]:
    """One line for every limit that captions exceed."""
    report = caption_report(config, sources, encoder)
    return [f"streams.{name}.data: {line}" for name, lengths in report.items() for line in lengths.warnings()]
