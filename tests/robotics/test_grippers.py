"""The three rules of the sticky gripper, against tables written by hand."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from robotics.grippers import Sticky, sticky


def commands(rule: str, openness: list[float], repeats: int) -> list[float]:
    memory, found = Sticky(), []
    for value in openness:
        command, memory = sticky(rule, value, memory, repeats)
        found.append(round(command, 6))
    return found


# RT-1's relative commands 0 0 +1 0 0 -1 0 as the absolute openness that policies learn: it closes at 2, opens at 5.
FRACTAL = [1.0, 1, 0, 0, 0, 1, 1]

TABLE = {
    ("octo", 2): [0, 0, 1, 1, 0, -1, -1],
    ("cogact", 2): [0, 0, 1, 1, 0, -1, -1],
    # -1 wherever open is asked for, +1 wherever closed: repeats only delay a change (here by one step each time).
    ("pi", 2): [-1, -1, 1, 1, 1, 1, -1],
    ("octo", 3): [0, 0, 1, 1, 1, -1, -1],
    ("cogact", 3): [0, 0, 1, 1, 1, -1, -1],
    # While +1 is repeated over step 5, Octo's rule forgets that the gripper shall open; CogACT's measures from the last
    # repeated change, and opens at the step after.
    ("octo", 4): [0, 0, 1, 1, 1, 1, 0],
    ("cogact", 4): [0, 0, 1, 1, 1, 1, -1],
}


@pytest.mark.parametrize(("rule", "repeats"), TABLE)
def test_commands_of_an_rt1_episode(rule, repeats):
    assert commands(rule, FRACTAL, repeats) == TABLE[rule, repeats]


@pytest.mark.parametrize("repeats", [15, 10])
@pytest.mark.parametrize("rule", ["octo", "cogact"])
def test_one_closing_is_sent_exactly_that_often(rule, repeats):
    assert commands(rule, [1.0] + [0.0] * 30, repeats) == [0] + [1] * repeats + [0] * (30 - repeats)


def test_slow_closing_adds_up_for_cogact_and_is_lost_for_octo():
    slow = [1.0, 0.7, 0.4, 0.1, 0.1, 0.1, 0.1]
    assert commands("octo", slow, 3) == [0, 0.3, 0.3, 0.3, 0, 0, 0]
    assert commands("cogact", slow, 3) == [0, 0.3, 0.6, 0.6, 0.6, 0.3, 0.3]


def test_pi_acts_at_the_first_step_and_needs_no_memory_of_the_past():
    assert commands("pi", [0.0, 0.0], 1) == [1, 1]
    assert commands("pi", [0.6, 0.4], 5) == [-0.2, 0.2]


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"'cogac' is not one of octo, cogact, pi\. Did you mean: 'cogact'"):
        sticky("cogac", 1.0, Sticky())
    with pytest.raises(ConfigError, match="0 must be at least 1"):
        sticky("octo", 1.0, Sticky(), repeats=0)
