"""Health of the alignment with the EMA teacher: student and teacher on held-out samples, noised as in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.evaluation.health import PairHealth
from core.evaluation.inputs import keyed_noise
from core.keys import generator
from core.modes import ALL_SHARED, Modes, draw_mode_levels
from core.noising import NoisingConfig, SampleLevels, stack_levels
from core.objective import noised
from core.schedule import TimestepConfig
from core.trunk.projectors import TEACHER
from core.types import FeatureLayers, NoiseLevels, TokenBatch


@dataclass(frozen=True)
class PairPlan:
    """How a run aligns its student with its teacher on one stream.

    Attributes:
        student: its trunk, in eval mode on the teacher's device.
        student_layer, teacher_layer: 1-based.
        noising, timestep, mask_ratio: what draws the levels.
        modes: how the levels of the parts are drawn, and which tokens are given or absent.
    """

    student: nn.Module
    student_layer: int
    teacher_layer: int
    noising: NoisingConfig
    timestep: TimestepConfig
    mask_ratio: float
    modes: Modes = ALL_SHARED


@torch.no_grad()
def pair_health(plan: PairPlan, teacher: nn.Module, batches: Iterable[TokenBatch], seed: int) -> dict[str, float]:
    """The numbers of `PairHealth`, and of the drawn levels where a sample has two of them, t and s:

    level_gap: mean |t - s|.
    share_masked: share of the tokens that have s.

    Noise and levels are keyed by (seed, sample key), so the numbers do not depend on the batch size. Raises DataError
    for no batches or no counted token.
    """
    health, gaps, masked = PairHealth(), [], []
    for batch in batches:
        batch, student_levels, teacher_levels = _as_in_training(plan, batch, seed)
        noise, length = keyed_noise(batch, seed), sum(batch.lengths)
        feature_layers = FeatureLayers(projected={TEACHER: plan.student_layer}, stop_after=plan.student_layer)
        inputs = plan.student(noised(batch, noise, student_levels), student_levels, batch, feature_layers)
        feature_layers = FeatureLayers(raw=(plan.teacher_layer,), stop_after=plan.teacher_layer)
        wanted = teacher(noised(batch, noise, teacher_levels), teacher_levels, batch, feature_layers)
        levels = student_levels.per_token(length), teacher_levels.per_token(length)
        health.update(inputs.projected[TEACHER], wanted.raw[plan.teacher_layer], batch.loss_mask(), *levels)
        if plan.noising.kind == "dual":
            gaps.append((student_levels.values[:, 0] - student_levels.values[:, 1]).abs().cpu())
            assert student_levels.index is not None  # pairs (t, s) one after the other, of the tokens with loss
            masked.append((student_levels.index % 2 == 1)[batch.loss_mask()].cpu())
    found = health.result()
    if gaps:
        found["level_gap"] = float(torch.cat(gaps).double().mean())
        found["share_masked"] = float(torch.cat(masked).double().mean())
    return found


def _as_in_training(plan: PairPlan, batch: TokenBatch, seed: int) -> tuple[TokenBatch, NoiseLevels, NoiseLevels]:
    """The batch with the tokens that are given, and the levels of student and teacher."""
    place = "+".join(segment.modality for segment in batch.segments)
    sides: list[tuple[SampleLevels, SampleLevels]] = []
    rows: list[Tensor] = []
    for key in batch.keys:
        draw = generator(seed, "evaluation", "levels", place, key)
        mode = plan.modes.draw(draw)
        if plan.modes.conditions():
            rows.append(mode.conditioning_mask(sum(batch.lengths)))
        sides.append(
            draw_mode_levels(plan.noising, plan.timestep, plan.mask_ratio, batch.lengths, draw, plan.modes, mode)
        )
    device = batch.segments[0].x0.device
    if rows:
        batch = batch.with_conditioning(torch.stack(rows).to(device))
    student, teacher = (stack_levels(list(side)) for side in zip(*sides, strict=True))
    return batch, _moved(student, device), _moved(teacher, device)


def _moved(levels: NoiseLevels, device: torch.device) -> NoiseLevels:
    index = None if levels.index is None else levels.index.to(device)
    return NoiseLevels(levels.values.to(device), index, levels.separate)
