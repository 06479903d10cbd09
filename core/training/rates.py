"""The learning rate as a function of the step: a linear rise, and what each schedule does after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.errors import nearest

DECAYS = ("linear", "1-sqrt")


@dataclass
class ScheduleConfig:
    """What every schedule has.

    Attributes:
        lr: the learning rate, where the schedule does not lower it.
        schedule: constant; cosine (half a cosine from the end of the warmup to the end of the run); or wsd (warmup,
            stable, decay: constant, then `cooldown` steps of `decay`).
        warmup: steps of linear rise from 0.
    """

    lr: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0

    def problems(self) -> list[str]:
        found = [] if self.lr > 0 else [f"lr: {self.lr} must be above 0"]
        return found + ([f"warmup: {self.warmup} must not be negative"] if self.warmup < 0 else [])

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the step that follows `step` finished ones, in a run of `steps`."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return min(self.lr * rise, self.ceiling(step, steps))

    def ceiling(self, step: int, steps: int) -> float:
        """The learning rate of a step without the rise at the beginning."""
        return self.lr

    def last_steps(self) -> int:
        """Steps of the fall at the end of a run; 0 where none are set aside for it."""
        return 0

    def reads_length(self) -> bool:
        """Whether the learning rate of a step depends on the length of the run, which then has to stay."""
        return self.last_steps() > 0


@dataclass
class ConstantSchedule(ScheduleConfig):
    """
    Attributes:
        cooldown: steps of linear fall to 0 at the end of the run.
    """

    cooldown: int = 0

    def problems(self) -> list[str]:
        own = [f"cooldown: {self.cooldown} must not be negative"] if self.cooldown < 0 else []
        return super().problems() + own

    def ceiling(self, step: int, steps: int) -> float:
        return self.lr * max((steps - step) / self.cooldown, 0.0) if self.cooldown else self.lr

    def last_steps(self) -> int:
        return self.cooldown


@dataclass
class FallingSchedule(ScheduleConfig):
    """What the schedules have that fall to a rate of choice.

    Attributes:
        min_lr: where they end.
    """

    min_lr: float = 0.0

    def problems(self) -> list[str]:
        own = [f"min_lr: {self.min_lr} must not be negative"] if self.min_lr < 0 else []
        if self.min_lr > self.lr:
            own.append(f"min_lr: {self.min_lr} must not be above lr, {self.lr}")
        return super().problems() + own

    def ceiling(self, step: int, steps: int) -> float:
        return self.min_lr + (self.lr - self.min_lr) * self.left(step, steps)

    def left(self, step: int, steps: int) -> float:
        """1 before the fall, 0 when all steps are done."""
        return 1.0


@dataclass
class CosineSchedule(FallingSchedule):
    def left(self, step: int, steps: int) -> float:
        past = (step - self.warmup) / max(steps - self.warmup, 1)
        return 0.5 + 0.5 * math.cos(math.pi * min(max(past, 0.0), 1.0))

    def reads_length(self) -> bool:
        return True


@dataclass
class WsdSchedule(FallingSchedule):
    """
    Attributes:
        cooldown: steps of the fall at the end of the run.
        decay: its shape: linear, or 1-sqrt (arXiv 2405.18392).
    """

    cooldown: int = 0
    decay: str = "1-sqrt"

    def problems(self) -> list[str]:
        own = []
        if self.cooldown < 1:
            own.append(
                f"cooldown: {self.cooldown}, but schedule 'wsd' ends in a fall; set its steps, often a tenth of the run"
            )
        if self.decay not in DECAYS:
            own.append(f"decay: {self.decay!r} is not one of {', '.join(DECAYS)}.{nearest(self.decay, DECAYS)}")
        return super().problems() + own

    def left(self, step: int, steps: int) -> float:
        past = min(max(1 - (steps - step) / self.cooldown, 0.0), 1.0)
        return 1 - (math.sqrt(past) if self.decay == "1-sqrt" else past)

    def last_steps(self) -> int:
        return self.cooldown


SCHEDULES: dict[str, type[ScheduleConfig]] = {
    "constant": ConstantSchedule,
    "cosine": CosineSchedule,
    "wsd": WsdSchedule,
}
