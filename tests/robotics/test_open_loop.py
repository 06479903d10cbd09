"""Errors against demonstrations, on numbers small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import DataError
from robotics.environment import Observation
from robotics.open_loop import episode_windows, open_loop, open_loop_table

NAMES = ("x", "gripper")
# Three steps; the action at step k is (k, 10 k), so that a window at t must hold t, t + 1, ...
ACTIONS = np.array([[0.0, 0], [1, 10], [2, 20]])
FRAMES = [np.full((2, 2, 3), step, dtype=np.uint8) for step in range(3)]
STATES = np.arange(3, dtype=np.float32)[:, None]


class Told:
    """Predicts what it is told, shifted by an error; the image tells it which step it is."""

    def __init__(self, error: float):
        self.error = error

    def reset(self, instruction: str, seed: int = 0) -> None:
        self.instruction = instruction

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        steps = int(observation["image"][0, 0, 0]) + np.arange(3)
        return np.stack([steps + self.error, 10.0 * steps], axis=1)


def windows() -> list:
    return list(episode_windows(FRAMES, STATES, ACTIONS, "pick can", horizon=2))


def test_a_window_begins_with_the_action_at_its_step():
    found = windows()
    assert [window.actions.tolist() for window in found] == [[[0, 0], [1, 10]], [[1, 10], [2, 20]], [[2, 20], [2, 20]]]
    assert [window.valid.tolist() for window in found] == [[True, True], [True, True], [True, False]]
    assert [window.observation["image"][0, 0, 0] for window in found] == [0, 1, 2]
    assert [float(window.observation["state"][0]) for window in found] == [0, 1, 2]
    assert len({window.seed for window in found}) == 3


def test_errors_by_dimension_and_step():
    report = open_loop(Told(0.5), windows(), NAMES)
    assert (report["windows"], report["horizon"], report["counts"]) == (3, 2, [3, 2])
    # Without the mask the padded action, predicted as 3.5 and (wrongly) taken for 2, would make it larger.
    assert report["error"]["by_dimension"] == {"x": 0.5, "gripper": 0}
    assert report["error"]["by_step"] == [0.25, 0.25]
    # mean of the valid actions 0 1 | 1 2 | 2 is 1.2: errors 1.2 .2 .2 .8 .8
    assert report["constant"]["by_dimension"]["x"] == pytest.approx((1.2 + 0.2 + 0.2 + 0.8 + 0.8) / 5)
    assert report["constant"]["by_step_and_dimension"][1]["gripper"] == pytest.approx(10 * (0.2 + 0.8) / 2)


def test_a_step_that_no_window_reaches_has_no_error():
    last = list(episode_windows(FRAMES[2:], STATES[2:], ACTIONS[2:], "pick can", horizon=3))
    report = open_loop(Told(0), last, NAMES)
    assert report["counts"] == [1, 0, 0]
    assert report["error"]["by_step"] == [0, None, None]
    assert open_loop_table(report).splitlines()[3] == "| +1 | 0 |  |  |"


def test_mistakes_are_named():
    with pytest.raises(DataError, match="no windows"):
        open_loop(Told(0), [], NAMES)
    with pytest.raises(DataError, match=r"predicted \(3, 2\) and demonstrated \(2, 2\); both must be \(steps, 3\)"):
        open_loop(Told(0), windows(), ("x", "y", "gripper"))
    with pytest.raises(DataError, match="not finite"):
        open_loop(Told(float("nan")), windows(), NAMES)
