"""Intervals and paired tests against published values and scipy."""

from __future__ import annotations

import pytest

from robotics.statistics import mcnemar, wilson
from robotics.success import judge


def test_wilson_against_published_values():
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_wilson_is_scipys():
    scipy = pytest.importorskip("scipy.stats")
    for successes, trials in ((0, 7), (3, 7), (7, 7), (140, 300)):
        there = scipy.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((there.low, there.high), abs=1e-12)


def test_mcnemar_by_hand_and_by_scipy():
    first = [True] * 5 + [True] * 8 + [False] * 1 + [False] * 6
    second = [True] * 5 + [False] * 8 + [True] * 1 + [False] * 6
    pair = mcnemar(first, second)
    assert pair[:4] == (5, 8, 1, 6)
    assert pair.p == pytest.approx(2 * (1 + 9) / 2**9)  # C(9, 0) + C(9, 1)
    scipy = pytest.importorskip("scipy.stats")
    assert pair.p == pytest.approx(scipy.binomtest(1, 9).pvalue)
    assert mcnemar([True, False], [False, True]).p == 1  # not 1.5
    assert mcnemar([True], [True]).p == 1


def test_paired_runs_must_be_as_long():
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


@pytest.mark.parametrize(
    ("steps", "last", "some", "hold"),
    [
        ([0, 0, 1, 1, 1], True, True, True),
        ([0, 1, 1, 1, 0], False, True, False),  # lifted, then dropped
        ([0, 0, 0, 0, 1], True, True, False),  # passing through at the end
        ([0, 1, 0, 1, 1], True, True, False),
        ([1, 1], True, True, False),
        ([0, 0, 0], False, False, False),
        ([], False, False, False),
    ],
)
def test_success_rules(steps, last, some, hold):
    assert judge([bool(step) for step in steps]) == {"last": last, "any": some, "hold": hold}
