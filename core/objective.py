"""The loss, on one screen: L = mean (v - (x1 - x0))^2 + gamma * alignment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.alignment import EmaTeacher
from core.flow import interpolate, velocity
from core.noising import Draws
from core.types import LossTerm, NoiseLevels, Taps, TokenBatch


class Objective:
    """Flow matching on the student's own noising, plus one alignment term or None."""

    def __init__(self, alignment: EmaTeacher | None):
        self.alignment = alignment

    def __call__(
        self, student: nn.Module, teacher: nn.Module | None, batch: TokenBatch, draws: Draws, counts: dict[str, float]
    ) -> dict[str, LossTerm]:
        """Named terms of the loss; a term of weight 0 is a diagnostic.

        Args:
            counts: number of counted tokens of the whole global batch, by the segment's modality.
        """
        taps = self.alignment.taps if self.alignment else Taps()
        output = student(noised(batch, draws.noise, draws.student), draws.student, batch, taps)

        terms = {}
        for segment, noise, predicted in zip(batch.segments, draws.noise, output.velocity, strict=True):
            error = (predicted.float() - velocity(segment.x0, noise)).square().mean(-1)  # (B, N, C) -> (B, N)
            total = (error * segment.counted()).sum()
            terms[f"flow/{segment.modality}"] = LossTerm(total, counts[segment.modality])

        if self.alignment:
            with torch.no_grad():
                seen = noised(batch, draws.noise, draws.teacher)  # the same noise, at the cleaner level
                target = teacher(seen, draws.teacher, batch, self.alignment.teacher_taps)
            terms |= self.alignment(output, target, batch.counted(), sum(counts.values()))
        return terms


def noised(batch: TokenBatch, noise: tuple[Tensor, ...], levels: NoiseLevels) -> tuple[Tensor, ...]:
    """x_t of every segment, each token at its own level."""
    per_segment = levels.per_token(sum(batch.lengths)).split(batch.lengths, dim=1)
    return tuple(
        interpolate(segment.x0, x1, t) for segment, x1, t in zip(batch.segments, noise, per_segment, strict=True)
    )


def total_loss(terms: dict[str, LossTerm]) -> Tensor:
    """sum of weight * total / count over the terms that have a weight."""
    return sum(term.weight * term.mean() for term in terms.values() if term.weight)
