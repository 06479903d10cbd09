"""Numbers of a study: means over seeds with confidence intervals, and differences to the first arm, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """mean over `count` seeds; half: half the width of the 95 % interval (Student's t), None for one seed."""

    mean: float
    half: float | None
    count: int

    def text(self) -> str:
        shown = f"{self.mean:.4g}"
        return shown if self.half is None else f"{shown} ± {self.half:.2g}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of independent values."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
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
    """better, worse, or unclear where the interval of a difference holds 0."""
    if found is None or found.half is None or abs(found.mean) <= found.half:
        return "unclear"
    return "better" if (found.mean < 0) == (better == "lower") else "worse"
