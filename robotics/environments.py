"""The environments that a rollout can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from core.errors import ConfigError, choose, nearest
from robotics.environment import Environment
from robotics.kinematic.environment import KinematicEnvironment
from robotics.simpler.environment import SimplerEnvironment

# Name -> task, options -> environment. Options are those of its class, and come from the command line.
ENVIRONMENTS: dict[str, Callable[..., Any]] = {
    "kinematic": KinematicEnvironment,
    "simpler": SimplerEnvironment,
}


def make_environment(name: str, task: str, options: dict[str, Any]) -> Environment:
    """Raises ConfigError where there is no such environment, task, option or value."""
    make = choose("environment", name, ENVIRONMENTS)
    allowed = list(inspect.signature(make).parameters)[1:]
    for option in options:
        if option not in allowed:
            known = ", ".join(allowed)
            raise ConfigError(f"{option}: the environment {name} has the options {known}.{nearest(option, allowed)}")
    return make(task, **options)
