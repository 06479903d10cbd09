"""The EMA copy of the student: teacher, evaluation model and exported model in one (paper A.3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class EmaConfig:
    """decay: share of the old value kept by every optimizer step; 0.9999 forgets its start in about 50k steps."""

    decay: float = 0.9999

    def problems(self) -> list[str]:
        return [] if 0 <= self.decay < 1 else [f"decay: {self.decay} must lie in [0, 1)"]

    def warning(self, steps: int) -> str | None:
        """What to tell a user whose average is longer than a fifth of the run."""
        horizon = round(1 / (1 - self.decay))
        if horizon <= steps / 5:
            return None
        fitting = f" A decay of {1 - 5 / steps:.4g} or less fits." if steps > 5 else ""
        return (
            f"ema.decay {self.decay} averages over {horizon} steps, more than a fifth of the {steps} steps of "
            f"this run: the teacher will lag behind.{fitting}"
        )


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy of the student at step 0, never in train mode. Its dtype, at least float32, is the student's.

    Weights that are not trained are not copied: student and teacher hold the same tensors.
    """
    shared = {id(parameter): parameter for parameter in student.parameters() if not parameter.requires_grad}
    teacher = copy.deepcopy(student, shared).eval()
    return teacher.requires_grad_(False)


def lerp_(kept: Sequence[Tensor], current: Sequence[Tensor], weight: float) -> None:
    """kept <- (1 - weight) kept + weight current, in place, for all tensors at once."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage] - there is no public one
        list(kept), list(current), weight
    )


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay teacher + (1 - decay) student, after every optimizer step; buffers are copied.

    `lerp` keeps its error near one rounding: 1000 steps differ from exact ones by 5e-7, mul-then-add by 9e-6.
    """
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    moving = [(kept, current) for kept, current in pairs if kept is not current]
    lerp_([kept for kept, _ in moving], [current for _, current in moving], 1 - decay)
    for kept, current in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(current)
