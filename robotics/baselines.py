"""Policies without a network: baselines for a success rate."""

from __future__ import annotations

import numpy as np
import torch

from core.errors import ConfigError
from core.keys import generator
from robotics.environment import ACTION_NAMES, Environment, Observation, Policy

LARGEST = 0.1  # meters and radians of a random action along each axis
CHUNK = 6  # actions predicted at once for the open loop: the paper's number


class Zero:
    """Stands still, with a closed gripper: all seven numbers are zero."""

    def reset(self, instruction: str, seed: int = 0) -> None:
        """Nothing to reset: it is stateless and deterministic."""

    def select_action(self, observation: Observation) -> np.ndarray:
        return np.zeros(len(ACTION_NAMES))

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        return np.zeros((CHUNK, len(ACTION_NAMES)))


class Random:
    """Uniform displacements and rotations, a uniformly drawn openness; step n is a function of (seed, n)."""

    def reset(self, instruction: str, seed: int = 0) -> None:
        self._seed, self._step = seed, 0

    def select_action(self, observation: Observation) -> np.ndarray:
        return self.predict_action_chunk(observation)[0]

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        random = generator("random policy", self._seed, self._step)
        self._step += 1
        drawn = torch.rand(CHUNK, len(ACTION_NAMES), generator=random, dtype=torch.float64).numpy()
        drawn[:, :-1] = (drawn[:, :-1] * 2 - 1) * LARGEST
        return drawn


class Repeat:
    """The expert's first action, over and over: what is left of a policy that ignores what it sees."""

    def __init__(self, expert: Policy):
        self._expert = expert

    def reset(self, instruction: str, seed: int = 0) -> None:
        self._expert.reset(instruction, seed)
        self._action: np.ndarray | None = None

    def select_action(self, observation: Observation) -> np.ndarray:
        if self._action is None:
            self._action = self._expert.select_action(observation)
        return self._action


def expert_of(environment: Environment) -> Policy:
    """Raises ConfigError where the task has none."""
    expert = environment.expert()
    if expert is None:
        raise ConfigError(f"{environment.name} has no scripted expert for the task {environment.task}")
    return expert
