"""The loss, on one screen: L = mean (v - (x1 - x0))^2 + the alignment terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from core.alignment.base import AlignmentTerm, Seen, merge_taps
from core.flow import interpolate, velocity
from core.noising import Draws
from core.types import LossTerm, NoiseLevels, TokenBatch

_NO_TARGETS: Mapping[str, Tensor] = MappingProxyType({})


class Objective:
    """Flow matching on the student's own noising, plus alignment terms, plain flow matching without any."""

    def __init__(self, terms: Sequence[AlignmentTerm] = ()):
        self.terms = tuple(terms)

    def terms_at(self, step: int) -> list[AlignmentTerm]:
        """Those that still have a weight after `step` steps."""
        return [term for term in self.terms if not term.is_over(step)]

    def reads_targets(self, step: int) -> bool:
        """Whether the step that follows `step` finished ones needs the features of frozen encoders."""
        return any(term.reads_targets for term in self.terms_at(step))

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batch: TokenBatch,
        draws: Draws,
        counts: dict[str, float],
        targets: Mapping[str, Tensor] = _NO_TARGETS,
        step: int = 0,
    ) -> dict[str, LossTerm]:
        """Named terms of the loss; a term of weight 0 is a diagnostic.

        Args:
            counts: number of counted tokens of the whole global batch, by the segment's modality.
            targets: name -> (B, L, D') features of frozen encoders.
            step: finished optimizer steps.
        """
        terms = self.terms_at(step)
        taps = merge_taps([term.taps(targets) for term in terms])
        output = student(noised(batch, draws.noise, draws.student), draws.student, batch, taps)

        losses = {}
        for segment, noise, predicted in zip(batch.segments, draws.noise, output.velocity, strict=True):
            error = (predicted.float() - velocity(segment.x0, noise)).square().mean(-1)  # (B, N, C) -> (B, N)
            total = (error * segment.counted()).sum()
            losses[f"flow/{segment.modality}"] = LossTerm(total, counts[segment.modality])

        seen_by_teacher = None
        teacher_taps = [term.teacher_taps for term in terms if term.teacher_taps]
        if teacher_taps:
            with torch.no_grad():  # the same noise, at the teacher's own level
                cleaner = noised(batch, draws.noise, draws.teacher)
                seen_by_teacher = teacher(cleaner, draws.teacher, batch, merge_taps(teacher_taps))
        seen = Seen(output, seen_by_teacher, targets, batch.counted(), sum(counts.values()), step)
        for term in terms:
            losses |= term(seen)
        return losses


def noised(batch: TokenBatch, noise: tuple[Tensor, ...], levels: NoiseLevels) -> tuple[Tensor, ...]:
    """x_t of every segment, each token at its own level."""
    per_segment = levels.per_token(sum(batch.lengths)).split(batch.lengths, dim=1)
    return tuple(
        interpolate(segment.x0, x1, t) for segment, x1, t in zip(batch.segments, noise, per_segment, strict=True)
    )


def total_loss(terms: dict[str, LossTerm]) -> Tensor:
    """sum of weight * total / count over the terms that have a weight."""
    return sum(term.weight * term.mean() for term in terms.values() if term.weight)
