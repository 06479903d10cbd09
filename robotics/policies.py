"""The policies that a rollout can name."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import choose
from robotics.baselines import Random, Repeat, Zero, expert_of
from robotics.environment import Environment, Policy

BUILT_IN: dict[str, Callable[[Environment], Policy]] = {
    "expert": expert_of,
    "random": lambda _: Random(),
    "repeat": lambda environment: Repeat(expert_of(environment)),
    "zero": lambda _: Zero(),
}


def make_policy(name: str, environment: Environment) -> Policy:
    """Raises ConfigError where there is no such policy, or it needs an expert that the task does not have."""
    return choose("policy", name, BUILT_IN)(environment)
