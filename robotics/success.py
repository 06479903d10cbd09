"""When an episode counts as solved. The rule changes scores by tens of points, so all three are recorded."""

from __future__ import annotations

from collections.abc import Sequence

RULES = ("last", "any", "hold")
HEADLINE = "last"  # SIMPLER's own: fulfilled at the last step of an episode that runs to its limit
HOLD_STEPS = 3  # one second at 3 Hz


def judge(fulfilled: Sequence[bool]) -> dict[str, bool]:
    """Judges the task's state after every step of an episode.

    last: fulfilled after the last step. any: after at least one step (looser: an object may be dropped again). hold:
    after each of the last HOLD_STEPS steps (stricter: not just passing through).
    """
    steps = [bool(step) for step in fulfilled]
    return {
        "last": bool(steps) and steps[-1],
        "any": any(steps),
        "hold": len(steps) >= HOLD_STEPS and all(steps[-HOLD_STEPS:]),
    }
