"""Which tokens of a sample are given: a first frame, a whole part, or none, drawn per sample from a small table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import ConfigError


@dataclass(frozen=True)
class Conditioning:
    """
    Attributes:
        table: name -> (probability, (L,) bool tokens that are then given); what is missing to 1 gives none.
        noise: level of given tokens, uniform in [0, noise] for each sample.

    Raises ConfigError for probabilities beyond 1, and where a row leaves no token that carries loss.
    """

    table: Mapping[str, tuple[float, Tensor]] = field(default_factory=dict)
    noise: float = 0.0

    def __post_init__(self):
        total = sum(probability for probability, _ in self.table.values())
        if total > 1 + 1e-6:
            raise ConfigError(f"condition_on: the probabilities sum to {total:g}, at most 1 is possible")
        for name, (_, conditioning_mask) in self.table.items():
            if bool(conditioning_mask.all()):
                raise ConfigError(
                    f"condition_on.{name}: gives every token of a sample, so that nothing is left to learn"
                )

    def draw(self, generator: torch.Generator) -> Tensor | None:
        """(L,) bool of one sample; None where no sample ever has given tokens."""
        if not self.table:
            return None
        place, reached = float(torch.rand((), generator=generator)), 0.0
        for probability, conditioning_mask in self.table.values():
            reached += probability
            if place < reached:
                return conditioning_mask
        (_, like), *_ = self.table.values()
        return torch.zeros_like(like)


NOTHING_GIVEN = Conditioning()
