"""What a study says of its numbers: intervals, paired differences, verdicts, and the figures that are shown."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from tools.compare.summary import Estimate, difference, estimate, over_seeds, verdict


def test_an_interval_is_students():
    values = [1.0, 2.5, 3.0, 7.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=statistics.fmean(values), scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.count == 4
    assert estimate([0.0, 2.0]).half == pytest.approx(math.tan(0.95 * math.pi / 2))  # Cauchy's quantile; sem is 1
    assert estimate([4.0]) == Estimate(4.0, None, 1)
    assert estimate([0.1, 0.3 - 0.2, 0.1]).half is None  # equal but for rounding


def test_differences_are_paired_by_seed_and_their_interval_is_that_of_the_paired_test():
    """Seeds differ by 10, arms by about 1: only pairs can tell."""
    reference, ours = {0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0}, {0: 9.1, 1: 18.9, 2: 29.2, 3: 38.8}
    results = {
        "a": {seed: {4: {"loss": value}} for seed, value in reference.items()},
        "b": {seed: {4: {"loss": value}} for seed, value in ours.items()},
    }
    found = difference(results, "b", "a", 4, "loss")
    paired = stats.ttest_rel(list(ours.values()), list(reference.values())).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((paired.low, paired.high))
    assert verdict(found, "lower") == "better"
    assert verdict(found, "higher") == "worse"
    assert over_seeds(results, "b", 4, "loss").half > 10 * found.half
    assert over_seeds(results, "b", 2, "loss") is None
    del results["a"][3], results["b"][0]
    assert difference(results, "b", "a", 4, "loss").count == 2
    results["a"] = {}
    assert difference(results, "b", "a", 4, "loss") is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Estimate(-1.0, 0.9, 3), "better"),
        (Estimate(-1.0, 1.0, 3), "unclear"),
        (Estimate(1.0, 0.5, 3), "worse"),
        (Estimate(-1.0, None, 1), "unclear"),
        (Estimate(math.nan, math.nan, 3), "unclear"),
        (None, "unclear"),
    ],
)
def test_verdicts(found, expected):
    assert verdict(found, "lower") == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Estimate(0.81234, 0.0123, 3), "0.812 ± 0.012"),
        (Estimate(-12.345, 3.21, 3), "-12.3 ± 3.2"),
        (Estimate(1234.5, 210.0, 3), "1234 ± 210"),
        (Estimate(0.81234, None, 1), "0.8123"),
    ],
)
def test_values_are_shown_to_the_second_figure_of_their_interval(found, expected):
    assert found.text() == expected
