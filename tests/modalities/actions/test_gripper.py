"""RT-1's gripper commands against tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from modalities.actions.gripper import absolute_gripper, apply_gripper


@pytest.mark.parametrize(
    ("relative", "openness"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [1, 1, 0, 0, 0, 1, 1]),  # 1 closes, -1 opens; open before it first closes
        ([0, -1, 0, 1, 1], [0, 1, 1, 0, 0]),  # closed before it first opens
        ([0, 0, 0], [1, 1, 1]),
        ([0.05, 0.3, -0.05, -0.2], [1, 0, 0, 1]),  # a tenth is no command
        ([1, -1], [0, 1]),
    ],
)
def test_relative_commands_become_the_state_that_results(relative, openness):
    assert absolute_gripper(np.array(relative, dtype=np.float32)).tolist() == openness


def test_rules():
    actions = np.array([[9, 0], [9, 1], [9, 0]], dtype=np.float32)
    assert apply_gripper("keep", actions, [1]) is actions
    assert apply_gripper("relative", actions, [1]).tolist() == [[9, 1], [9, 0], [9, 0]]
    assert apply_gripper("inverted", actions, [1]).tolist() == [[9, 1], [9, 0], [9, 1]]
    assert actions[1].tolist() == [9, 1]
