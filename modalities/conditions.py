"""From a record's captions or label to a Context, and the decision to drop it.

The decision is drawn once per sample and stored in the Context, so that student and teacher always agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, nearest
from core.types import Context
from modalities.base import Record
from modalities.text import TextConfig, collate_text


@dataclass
class ConditionConfig:
    """
    Attributes:
        kind: text (captions through the built-in byte-level encoder) or label (class names of the data).
        dropout: share of samples whose condition is dropped in training, for guidance.
        encoder_depth: self-attention blocks of the byte-level encoder, which is trained with the trunk.
        text: how text becomes rows of its table.
    """

    kind: str = "text"
    dropout: float = 0.1
    encoder_depth: int = 1
    text: TextConfig = field(default_factory=TextConfig)

    def problems(self) -> list[str]:
        found = []
        if self.kind not in ("text", "label"):
            found.append(f"kind: {self.kind!r} is not one of text, label")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout: {self.dropout} must lie in [0, 1)")
        if self.encoder_depth < 0:
            found.append(f"encoder_depth: {self.encoder_depth} must not be negative")
        return found


class Conditions:
    """
    Args:
        labels: every class name of the run, in the order of the trunk's label table; empty with text.
    """

    def __init__(self, config: ConditionConfig, labels: list[str]):
        self.config, self.labels = config, labels
        self._index = {label: i for i, label in enumerate(labels)}

    def draw(self, record: Record, generator: torch.Generator) -> tuple[str, bool]:
        """The condition of a sample (one of its captions at random, or its label) and whether it is dropped."""
        choice, dropped = torch.rand(2, generator=generator).tolist()
        if self.config.kind == "label":
            if record.label not in self._index:
                raise DataError(f"{record.origin}: label {record.label!r} is not among the {len(self.labels)} classes")
            condition = record.label
        elif not record.captions:
            raise DataError(f"{record.origin}: has no caption")
        else:
            condition = record.captions[int(choice * len(record.captions))]
        return condition, dropped < self.config.dropout

    def context(self, conditions: list[str], dropped: Tensor) -> Context:
        """Texts or class names -> Context. Raises ConfigError for an unknown class name."""
        if self.config.kind == "text":
            tokens, valid = collate_text(conditions, self.config.text)
            return Context(dropped, tokens=tokens, valid=valid)
        for name in conditions:
            if name not in self._index:
                raise ConfigError(f"class {name!r} is not one of the run's classes.{nearest(name, self.labels)}")
        return Context(dropped, label=torch.tensor([self._index[name] for name in conditions]))
