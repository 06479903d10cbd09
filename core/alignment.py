"""Alignment terms: what hidden features of the student are compared with.

A term says which features it needs (`taps` of the student, `teacher_taps` of the teacher) and turns them into a
loss. The objective runs the networks; a term never does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import choose
from core.trunk.layers import layer_fraction
from core.types import LossTerm, Taps, TrunkOutput


@dataclass
class AlignmentConfig:
    """
    Attributes:
        kind: none, or ema_teacher (Self-Flow: a deeper layer of the EMA teacher, which sees a cleaner sample).
        weight: gamma, the factor of the term in the loss.
        similarity: cosine (1 - cos over channels, the paper's), or the ablations l1 and l2.
        student_layer, teacher_layer: 1-based; None means round(0.3 depth) and round(0.7 depth).
    """

    kind: str = "none"
    weight: float = 0.8
    similarity: str = "cosine"
    student_layer: int | None = None
    teacher_layer: int | None = None

    def problems(self) -> list[str]:
        found = []
        if self.kind not in KINDS:
            found.append(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.similarity not in _SIMILARITIES:
            found.append(f"similarity: {self.similarity!r} is not one of {', '.join(_SIMILARITIES)}")
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; use kind: none to switch alignment off")
        return found

    def layers(self, depth: int) -> tuple[int, int]:
        """(student layer, teacher layer) in a trunk of `depth` blocks."""
        return (
            layer_fraction(0.3, depth) if self.student_layer is None else self.student_layer,
            layer_fraction(0.7, depth) if self.teacher_layer is None else self.teacher_layer,
        )

    def depth_problems(self, depth: int) -> list[str]:
        """What only shows once the depth of the trunk is known."""
        student, teacher = self.layers(depth)
        if self.kind == "ema_teacher" and not 1 <= student < teacher <= depth:
            return [f"need 1 <= student_layer < teacher_layer <= depth, got {student}, {teacher}, {depth}"]
        return []


# Distances of two features (B, L, D) per token -> (B, L), in float32: late blocks overflow half precision.
_SIMILARITIES = {
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
    "l1": lambda a, b: (a - b).abs().mean(-1),
    "l2": lambda a, b: (a - b).square().mean(-1),
}


class EmaTeacher:
    """L_rep of Self-Flow (paper Eq. 6): projected student layer against a raw, deeper layer of the EMA teacher."""

    def __init__(self, config: AlignmentConfig, depth: int):
        self.student_layer, self.teacher_layer = config.layers(depth)
        self.weight, self.distance = config.weight, _SIMILARITIES[config.similarity]
        self.taps = Taps(projected=(self.student_layer,))
        self.teacher_taps = Taps(raw=(self.teacher_layer,), stop_after=self.teacher_layer)

    def __call__(
        self, student: TrunkOutput, teacher: TrunkOutput, counted: Tensor, count: float
    ) -> dict[str, LossTerm]:
        """counted (B, L): tokens that enter the mean. The author logs mean(1 - cos), hence a value in [0, 2]."""
        prediction = student.projected[self.student_layer].float()  # (B, L, D)
        target = teacher.raw[self.teacher_layer].detach().float()  # (B, L, D)
        distance = (self.distance(prediction, target) * counted).sum()
        with torch.no_grad():  # growing norms are the known sign of trouble (paper Fig. 11), so they are logged
            norms = (target.norm(dim=-1) * counted).sum()
        return {"align": LossTerm(distance, count, self.weight), "teacher_norm": LossTerm(norms, count, 0.0)}


KINDS = {"none": None, "ema_teacher": EmaTeacher}


def build_alignment(config: AlignmentConfig, depth: int) -> EmaTeacher | None:
    """The term that the configuration names, or None."""
    term = choose("alignment.kind", config.kind, KINDS)
    return None if term is None else term(config, depth)
