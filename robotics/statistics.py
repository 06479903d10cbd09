"""Confidence intervals of success rates, and whether two runs over the same episodes differ. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
FEW = 50  # episodes below which a rate is marked; intervals are then about +-14 points wide


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a rate, in [0, 1]; (0, 1) where nothing was tried.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927). Also holds at 0 and n.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    center = rate + square / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


class Paired(NamedTuple):
    """Two runs over the same episodes: how many both solved, only the first, only the second, neither; exact p."""

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact test: two-sided binomial p of the episodes that only one run solved.

    Raises:
        ValueError: of different lengths.
    """
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    one, other = pairs.count((True, False)), pairs.count((False, True))
    trials = one + other
    tail = sum(math.comb(trials, count) for count in range(min(one, other) + 1))
    p = min(1.0, 2 * tail / 2**trials)
    return Paired(pairs.count((True, True)), one, other, pairs.count((False, False)), p)
