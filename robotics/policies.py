"""The policies that a rollout can name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from core.errors import AccidentError, ConfigError, choose
from core.optional import need
from robotics.baselines import Random, Repeat, Zero, expert_of
from robotics.client import RemotePolicy, ServerError
from robotics.environment import Environment, Observation, Policy

BUILT_IN: dict[str, Callable[[Environment], Policy]] = {
    "expert": expert_of,
    "random": lambda _: Random(),
    "repeat": lambda environment: Repeat(expert_of(environment)),
    "zero": lambda _: Zero(),
}


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


def make_policy(name: str, environment: Environment) -> Policy:
    """A policy of `BUILT_IN`, or the one of a server: `ws://127.0.0.1:8000` (see `selfflow serve`).

    Raises:
        ConfigError: there is no such policy or server, or it needs an expert that the task does not have.
    """
    if "://" in name:
        need("websockets", f"the policy {name}", "Policies of this machine work")
        need("msgpack", f"the policy {name}", "Policies of this machine work")
        return Served(name)
    return choose("policy", name, BUILT_IN)(environment)
