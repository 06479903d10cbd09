"""The policies that a rollout can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from core.errors import AccidentError, ConfigError, nearest
from core.optional import need
from robotics.baselines import Random, Repeat, Zero, expert_of
from robotics.client import RemotePolicy, ServerError
from robotics.environment import ACTION_NAMES, Environment, Observation, Policy
from robotics.simpler.actions import ROTATIONS

BUILT_IN: dict[str, Callable[[Environment], Policy]] = {
    "expert": expert_of,
    "random": lambda _: Random(),
    "repeat": lambda environment: Repeat(expert_of(environment)),
    "zero": lambda _: Zero(),
}
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Served:
    """The policy of a server, with errors as this program tells them: it goes on from its finished episodes."""

    def __init__(self, url: str):
        try:
            self._remote = RemotePolicy(url)
        except ServerError as error:
            raise ConfigError(str(error)) from error
        self.reset = self._remote.reset

    def select_action(self, observation: Observation) -> np.ndarray:
        try:
            return self._remote.select_action(observation)
        except ServerError as error:
            raise AccidentError(str(error)) from error

    def predict_action_chunk(self, observation: Observation) -> np.ndarray:
        try:
            return self._remote.predict_action_chunk(observation)
        except ServerError as error:
            raise AccidentError(str(error)) from error


def make_policy(name: str, environment: Environment, acting: Mapping[str, Any] = NO_SETTINGS) -> Policy:
    """A policy of `BUILT_IN`, that of a run folder, or the one of a server, such as `ws://127.0.0.1:8000`.

    Args:
        acting: settings of a run's policy, those of `robotics.policy.PolicySettings`.

    Raises:
        ConfigError: there is no such policy, run or server, it needs an expert that the task does not have, or the run
            acts in another way than the environment.
    """
    if Path(name).is_dir():
        return acting_run(name, environment, acting)
    if acting:
        raise ConfigError(f"{', '.join(acting)}: of the policy of a run, and {name} is none")
    if "://" in name:
        need("websockets", f"the policy {name}", "Policies of this machine work")
        need("msgpack", f"the policy {name}", "Policies of this machine work")
        return Served(name)
    if name not in BUILT_IN:
        hint = nearest(name, BUILT_IN)
        raise ConfigError(
            f"policy: {name!r} is neither one of {', '.join(BUILT_IN)}, nor the folder of a run, nor a URL.{hint}"
        )
    return BUILT_IN[name](environment)


def acting_run(folder: str, environment: Environment, acting: Mapping[str, Any]) -> Policy:
    from robotics.policy import RunPolicy  # loads torch networks; other policies need none

    policy = RunPolicy.from_pretrained(folder, **acting)
    if policy.width != len(ACTION_NAMES):
        raise ConfigError(
            f"{folder}: makes actions of {policy.width} numbers, and the environment {environment.name} takes "
            f"{len(ACTION_NAMES)}: {', '.join(ACTION_NAMES)}"
        )
    reads = environment.protocol.get("rotation")
    if policy.rotation in ROTATIONS and reads in ROTATIONS and reads != policy.rotation:
        raise ConfigError(
            f"{folder}: its rotations are {policy.rotation}, and the environment reads them as {reads}; give "
            f"rotation={policy.rotation}"
        )
    there = len(environment.state_names)
    if policy.state_width not in (None, there):
        raise ConfigError(
            f"{folder}: reads a state of {policy.state_width} numbers, and that of the environment {environment.name} "
            f"has {there}: {', '.join(environment.state_names) or 'none'}"
        )
    return policy
