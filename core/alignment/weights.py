"""The weight of an alignment term as a function of the step: a linear rise, and an end.

An end frees the student of its teacher once it has learned what the teacher knows (HASTE, arXiv 2505.16792, ends REPA's
alignment); the networks that only the term needed are not run from then on.
"""

from __future__ import annotations

from typing import Protocol


class Scheduled(Protocol):
    """
    Attributes:
        warmup: steps in which the weight rises to its value; 0 for none.
        until: steps for which the term is there; 0 for the whole run.
    """

    warmup: int
    until: int


def schedule_problems(config: Scheduled) -> list[str]:
    found = [f"{n}: {getattr(config, n)} must not be negative" for n in ("warmup", "until") if getattr(config, n) < 0]
    if not found and config.until and config.warmup >= config.until:
        found.append(f"until: {config.until} must be above warmup, {config.warmup}, or the weight is never reached")
    return found


def is_over(config: Scheduled, step: int) -> bool:
    """Whether the weight is 0 for good after `step` steps."""
    return 0 < config.until <= step


def factor_at(config: Scheduled, step: int) -> float:
    """What the weight is multiplied by in the step that follows `step` finished ones, in [0, 1]."""
    if is_over(config, step):
        return 0.0
    return min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
