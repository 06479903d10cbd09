"""Grippers: RT-1 commands changes (1 closes, -1 opens, 0 leaves it), and policies learn the state that results."""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.1  # below it a command is none, as in Octo's and OpenVLA's pipelines
RULES = ("keep", "relative", "inverted")


def absolute_gripper(relative: np.ndarray) -> np.ndarray:
    """(T,) closing commands of a whole episode -> (T,) float32 openness: 1 open, 0 closed.

    A command holds until the next one. Before the first one the gripper is in the opposite state; without any it is
    open.
    """
    commands = np.where(np.abs(relative) > THRESHOLD, np.sign(relative), 0)
    steps = np.flatnonzero(commands)
    if not len(steps):
        return np.ones(len(relative), dtype=np.float32)
    last = np.searchsorted(steps, np.arange(len(relative)), side="right") - 1  # -1 before the first command
    closing = np.where(last >= 0, commands[steps[last]], -commands[steps[0]])
    return (closing < 0).astype(np.float32)


def apply_gripper(rule: str, actions: np.ndarray, places: list[int]) -> np.ndarray:
    """(T, W) actions of a whole episode, whose grippers are given as openness.

    Args:
        rule: keep; relative (RT-1: commands that open or close); inverted (1 is closed in the data).
        places: of the grippers in a vector.
    """
    if rule == "keep" or not places:
        return actions
    found = actions.copy()
    for place in places:
        found[:, place] = absolute_gripper(actions[:, place]) if rule == "relative" else 1 - actions[:, place]
    return found
