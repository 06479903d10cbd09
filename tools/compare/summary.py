"""Numbers of a study: means over seeds with confidence intervals, and differences to the first arm, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
ROUNDING = 1e-9  # values closer than this, relative, are equal


@dataclass(frozen=True)
class Estimate:
    """mean over `count` seeds; half: half the width of the 95 % interval (Student's t).

    half is None for one seed, and for equal values: accuracies over a few hundred records repeat, which says nothing
    about their spread.
    """

    mean: float
    half: float | None
    count: int

    def text(self) -> str:
        """Mean ± half width, both to the decimal of the half width's second figure."""
        if self.half is None or not math.isfinite(self.half):
            return f"{self.mean:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(self.half)))
        return f"{self.mean:.{decimals}f} ± {self.half:.{decimals}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2 or max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return Estimate(mean, None, count)
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error, count)


Results = dict[str, dict[int, dict[int, dict[str, float]]]]  # arm -> seed -> step -> metric -> value


def over_seeds(results: Results, arm: str, step: int, metric: str) -> Estimate | None:
    """None where no seed has the value."""
    values = [by_step[step][metric] for by_step in results[arm].values() if metric in by_step.get(step, {})]
    return estimate(values) if values else None


def difference(results: Results, arm: str, reference: str, step: int, metric: str) -> Estimate | None:
    """Arm minus reference, of seeds that both have: they share initial weights, data and noise, so pairs tell more."""
    values = [
        by_step[step][metric] - results[reference][seed][step][metric]
        for seed, by_step in results[arm].items()
        if metric in by_step.get(step, {}) and metric in results[reference].get(seed, {}).get(step, {})
    ]
    return estimate(values) if values else None


def verdict(found: Estimate | None, better: str) -> str:
    """better, worse, or unclear: no interval, or one that holds 0."""
    if found is None or found.half is None or not abs(found.mean) > found.half:
        return "unclear"
    return "better" if (found.mean < 0) == (better == "lower") else "worse"
