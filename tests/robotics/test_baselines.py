"""Policies without a network, and the processes that they run in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from core.errors import AccidentError, ConfigError
from core.parallel import spread
from robotics.baselines import LARGEST, Random, Repeat, expert_of
from robotics.environment import Observation
from robotics.kinematic.environment import KinematicEnvironment
from robotics.policies import make_policy

BLIND = Observation(image=np.zeros((1, 1, 3), np.uint8), state=np.zeros(0, np.float32), instruction="")


def actions(policy: Random, seed: int) -> np.ndarray:
    policy.reset("", seed)
    return np.stack([policy.select_action(BLIND) for _ in range(40)])


def test_random_actions_are_a_function_of_the_seed():
    policy = Random()
    first = actions(policy, 7)
    assert np.array_equal(actions(policy, 7), first)
    assert not np.array_equal(actions(policy, 8), first)
    assert len(np.unique(first, axis=0)) == 40
    assert np.abs(first[:, :6]).max() <= LARGEST
    assert first[:, :6].min() < 0 < first[:, :6].max()
    assert 0 <= first[:, 6].min() < 0.5 < first[:, 6].max() <= 1


def test_repeat_keeps_the_experts_first_action_of_each_episode():
    environment = KinematicEnvironment("pick", size=16)
    policy = Repeat(expert_of(environment))
    taken = []
    for episode in (0, 1):
        observation = environment.reset(episode)
        policy.reset(observation["instruction"])
        first = expert_of(environment).select_action(observation)
        for _ in range(4):
            action = policy.select_action(observation)
            assert np.array_equal(action, first)
            observation = environment.step(action).observation
        taken.append(first)
    assert not np.array_equal(*taken)


class Expertless(KinematicEnvironment):
    def expert(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


@pytest.mark.parametrize("name", ["expert", "repeat"])
def test_what_needs_an_expert_says_so(name):
    with pytest.raises(ConfigError, match="kinematic has no scripted expert for the task pick"):
        make_policy(name, Expertless("pick"))


def dying(items: Sequence[int]) -> Iterator[int]:
    for item in items:
        if item == 3:
            os._exit(9)
        yield item


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_its_results_are_kept():
    found = []
    with pytest.raises(AccidentError, match="a worker process ended with exit code 9"):
        found.extend(spread(dying, range(4), 2))
    assert 1 in found  # came before 3 in the same process
