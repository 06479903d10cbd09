"""Alignment with a deeper layer of the EMA teacher: Self-Flow (paper Eq. 6) and SRA (arXiv 2505.02831).

They differ in what the teacher sees, which the noising decides (core/noising.py), and in distance and
weight.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from core.alignment.base import AlignmentInputs
from core.alignment.distances import DISTANCES, distance_problems
from core.alignment.weights import factor_at, is_over, schedule_problems
from core.errors import nearest
from core.trunk.layers import layer_fraction
from core.trunk.projectors import PROJECTORS, TEACHER
from core.types import FeatureLayers, LossTerm, at_least_float32


@dataclass
class EmaTeacherConfig:
    """
    Attributes:
        weight: gamma, the factor of the term in the loss.
        similarity: cosine (mean of 1 - cos over channels: Self-Flow), smooth_l1 (beta 0.05: the SRA paper), l1, l2
            (ablations), or cosine_over_tokens (what SRA's released code computes as its cosine).
        student_layer, teacher_layer: 1-based; None means round(0.3 depth) and round(0.7 depth).
        projector: simple (the released checkpoint's two layers) or repa (three layers, 2048 wide).
        constant_steps: steps for which the weight stays as it is.
        decay_10x_steps: after `constant_steps` the weight falls tenfold every so many steps; 0 keeps it constant.
        warmup: steps in which the weight rises to its value; 0 for none.
        until: steps for which the term is there; 0 for the whole run.
    """

    weight: float = 0.8
    similarity: str = "cosine"
    student_layer: int | None = None
    teacher_layer: int | None = None
    projector: str = "simple"
    constant_steps: int = 0
    decay_10x_steps: int = 0
    warmup: int = 0
    until: int = 0

    def problems(self) -> list[str]:
        found = distance_problems(self.similarity)
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; set alignment.ema_teacher: null to leave it out")
        if self.projector not in PROJECTORS:
            close = nearest(self.projector, PROJECTORS)
            found.append(f"projector: {self.projector!r} is not one of {', '.join(PROJECTORS)}.{close}")
        if min(self.constant_steps, self.decay_10x_steps) < 0:
            found.append(
                f"constant_steps, decay_10x_steps: {self.constant_steps}, {self.decay_10x_steps} must not be negative"
            )
        elif self.constant_steps and not self.decay_10x_steps:
            found.append(f"constant_steps: {self.constant_steps} has no meaning without decay_10x_steps")
        return found + schedule_problems(self)

    def layers(self, depth: int) -> tuple[int, int]:
        """(student layer, teacher layer) in a trunk of `depth` blocks."""
        return (
            layer_fraction(0.3, depth) if self.student_layer is None else self.student_layer,
            layer_fraction(0.7, depth) if self.teacher_layer is None else self.teacher_layer,
        )

    def depth_problems(self, depth: int) -> list[str]:
        """What only shows once the depth of the trunk is known."""
        student, teacher = self.layers(depth)
        if 1 <= student < teacher <= depth:
            return []
        usual = "left out, they are {} and {}".format(*EmaTeacherConfig().layers(depth))
        return [f"need 1 <= student_layer < teacher_layer <= depth, got {student}, {teacher}, {depth}; {usual}"]

    def weight_at(self, step: int) -> float:
        """Factor of the term after `step` steps.

        SRA's train.py has 0.2 for 149 epochs, then tenfold less every 1000 epochs (512 x 512: 99 and 800). It changes
        once an epoch; here it changes every step, and agrees where epochs begin.
        """
        weight = self.weight * factor_at(self, step)
        if not self.decay_10x_steps:
            return weight
        return weight * 0.1 ** (max(0, step - self.constant_steps) / self.decay_10x_steps)


class EmaTeacher:
    """Projected student layer against a raw, deeper layer of the teacher, under stop-gradient."""

    def __init__(self, config: EmaTeacherConfig, depth: int):
        self.config, self.distance = config, DISTANCES[config.similarity]
        self.student_layer, self.teacher_layer = config.layers(depth)
        self.teacher_feature_layers = FeatureLayers(raw=(self.teacher_layer,), stop_after=self.teacher_layer)
        self.reads_targets = False

    def feature_layers(self, targets: Collection[str]) -> FeatureLayers:
        return FeatureLayers(projected={TEACHER: self.student_layer})

    def is_over(self, step: int) -> bool:
        return is_over(self.config, step)

    def __call__(self, inputs: AlignmentInputs) -> dict[str, LossTerm]:
        assert inputs.teacher is not None  # `teacher_feature_layers` asks for it
        prediction = at_least_float32(inputs.student.projected[TEACHER])  # (B, L, D)
        target = at_least_float32(inputs.teacher.raw[self.teacher_layer].detach())  # (B, L, D)
        total = self.distance(prediction, target, inputs.loss_mask)
        with torch.no_grad():  # growing norms are the known sign of trouble (paper Fig. 11), so they are logged
            norms = (target.norm(dim=-1) * inputs.loss_mask).sum()
        return {
            "align/teacher": LossTerm(total, inputs.count, self.config.weight_at(inputs.step)),
            "teacher_norm": LossTerm(norms, inputs.count, 0.0),
        }
