"""The loss, on one screen: L = the weighted sum over parts of mean (v - (x1 - x0))^2, plus the alignment terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from core.alignment.base import AlignmentInputs, AlignmentTerm, merge_feature_layers
from core.errors import DataError
from core.flow import interpolate, velocity
from core.noising import NoiseSample
from core.types import LossTerm, NoiseLevels, TokenBatch, at_least_float32

_NO_TARGETS: Mapping[str, Tensor] = MappingProxyType({})


class Objective:
    """Flow matching on the student's own noising, plus alignment terms, plain flow matching without any."""

    def __init__(self, terms: Sequence[AlignmentTerm] = ()):
        self.terms = tuple(terms)

    def terms_at(self, step: int) -> list[AlignmentTerm]:
        """The terms that still have a weight after `step` steps."""
        return [term for term in self.terms if not term.is_over(step)]

    def reads_targets(self, step: int) -> bool:
        """Whether the step that follows `step` finished ones needs the features of frozen encoders."""
        return any(term.reads_targets for term in self.terms_at(step))

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batch: TokenBatch,
        drawn: NoiseSample,
        counts: dict[str, float] | None = None,
        targets: Mapping[str, Tensor] = _NO_TARGETS,
        step: int = 0,
    ) -> dict[str, LossTerm]:
        """Named terms of the loss; a term of weight 0 is a diagnostic.

        Args:
            counts: tokens in the loss masks of the whole global batch, by the name of the segment; None where this
                batch is the whole. A segment without any, all of whose tokens are padding, given or absent in all
                samples, has no loss.
            targets: name -> (B, L, D') features of frozen encoders.
            step: finished optimizer steps.

        Raises DataError where no token of the whole batch carries loss.
        """
        if counts is None:
            counts = {segment.name: float(segment.loss_mask().sum()) for segment in batch.segments}
        if not any(counts.values()):
            raise DataError(
                f"no token of {', '.join(counts)} carries loss in any sample of the batch: all are padding, given or "
                "absent"
            )
        terms = self.terms_at(step)
        feature_layers = merge_feature_layers([term.feature_layers(targets) for term in terms])
        output = student(noised(batch, drawn.noise, drawn.student), drawn.student, batch, feature_layers)

        losses = {}
        for segment, noise, predicted in zip(batch.segments, drawn.noise, output.velocity, strict=True):
            if not counts[segment.name]:
                continue
            # (B, N, C) -> (B, N); of padding before it is squared, since 0 times NaN would be NaN
            error = at_least_float32(predicted) - velocity(segment.x0, noise)
            error = _without_padding(error, segment.valid).square().mean(-1)
            total = (error * segment.loss_mask()).sum()
            losses[f"flow/{segment.name}"] = LossTerm(total, counts[segment.name], segment.weight)

        teacher_output = None
        teacher_feature_layers = [term.teacher_feature_layers for term in terms if term.teacher_feature_layers]
        if teacher_feature_layers:
            assert teacher is not None  # needed by a term
            with torch.no_grad():  # the same noise, at the teacher's own level
                cleaner = noised(batch, drawn.noise, drawn.teacher)
                teacher_output = teacher(cleaner, drawn.teacher, batch, merge_feature_layers(teacher_feature_layers))
        inputs = AlignmentInputs(output, teacher_output, targets, batch.loss_mask(), sum(counts.values()), step)
        for term in terms:
            losses |= term(inputs)
        return losses


def noised(batch: TokenBatch, noise: tuple[Tensor, ...], levels: NoiseLevels) -> tuple[Tensor, ...]:
    """x_t of every segment, each token at its own level; 0 at padding, whatever stands there."""
    per_segment = levels.per_token(sum(batch.lengths)).split(batch.lengths, dim=1)
    return tuple(
        _without_padding(interpolate(segment.x0, x1, t), segment.valid)
        for segment, x1, t in zip(batch.segments, noise, per_segment, strict=True)
    )


def _without_padding(tokens: Tensor, valid: Tensor | None) -> Tensor:
    return tokens if valid is None else tokens.masked_fill(~valid[..., None], 0.0)


def total_loss(terms: dict[str, LossTerm]) -> Tensor:
    """sum of weight * total / count over the terms that have a weight."""
    # A sum of nothing would be the number 0, but a loss without any weight trains nothing.
    return cast(Tensor, sum(term.weight * term.mean() for term in terms.values() if term.weight))
