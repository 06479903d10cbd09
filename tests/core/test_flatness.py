"""When an alignment term is called flat."""

from __future__ import annotations

import pytest

from core.training.flatness import WINDOW, Flatness, is_flat


@pytest.mark.parametrize(("after", "flat"), [(1.0, True), (0.985, True), (1.015, True), (0.97, False), (1.03, False)])
def test_two_means_within_two_percent(after, flat):
    assert is_flat([5.0] + [1.0] * WINDOW + [after] * WINDOW) is flat
    assert not is_flat([1.0] * (2 * WINDOW - 1))


def test_it_is_said_once_of_each_term_and_stream():
    """A term that falls by 1 in 100 steps and stays from step 300 on."""
    flatness, told = Flatness(), []
    for step in range(900):
        value = max(1.0, 4.0 - step / 100)
        found = flatness.add({"stream": "image", "loss": 1.0, "align/teacher": value, "lr": 0.1})
        told += [(step + 1, line) for line in found]
        assert not flatness.add({"stream": "video", "skipped": True})
    ((step, line),) = told
    # Of the 200 values before the last 200, those from the slope exceed 1 by 0.01, 0.02, ...: n of them together by
    # n (n + 1) / 200, which is at most 2 percent of 200 plus itself up to n = 28.
    assert step == 300 + 400 - 28
    assert line.startswith("image: align/teacher is flat, 1 in the last 200 steps and 1.02 before; ")
