"""The tabletop as an environment that rollouts know."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.errors import ConfigError, choose
from robotics.environment import Observation, Step, checked_action
from robotics.kinematic.expert import Expert
from robotics.kinematic.render import render
from robotics.kinematic.scene import DRAWER, GRASP, MAX_STEP, Scene, advance
from robotics.kinematic.tasks import KINDS, TASKS, draw_scene, instruction, measures

SIZES = (16, 512)  # pixels of a side that make sense
IMAGE = 64
GRIPPER = ("x", "y", "z", "gripper")
OBJECTS = tuple(f"{kind}.{axis}" for kind in (*KINDS, DRAWER) for axis in "xyz")
# What the observed state holds: what a robot knows of itself, or with it where everything is, as in the simulators'
# tasks "from state", which are learned in minutes.
STATES = {"gripper": GRIPPER, "objects": (*GRIPPER, *OBJECTS)}


class KinematicEnvironment:
    """One task on the tabletop; see `robotics.environment.Environment`.

    Args:
        task: a key of `tasks.TASKS`.
        size: of a side of its square image, in pixels.
        state: gripper (its position and openness), or objects: with them the position of every kind of object from
            the gripper, in meters, zeros for one that is not there.

    Raises:
        ConfigError: no such task, size or state.
    """

    name, fps = "kinematic", 3.0
    episodes: int | None = None

    def __init__(self, task: str, size: int = IMAGE, state: str = "gripper"):
        self._task = choose("task of the kinematic environment", task, TASKS)
        self.state_names: tuple[str, ...] = choose("state of the kinematic environment", state, STATES)
        if not SIZES[0] <= size <= SIZES[1]:
            raise ConfigError(f"an image of {size} pixels; allowed are {SIZES[0]} to {SIZES[1]}")
        self.task, self.size, self.max_steps = task, size, self._task.max_steps
        self.protocol: dict[str, Any] = {
            "variant": "kinematic",
            "comparable": "with runs on this environment only",
            "image": [size, size],
            "state": state,
            "max_steps": self.max_steps,
            "max_displacement": MAX_STEP,
            "grasp_tolerance": GRASP,
            "rotation": "ignored: the gripper looks down",
            "gripper": "absolute: below 0.5 closes",
        }
        self._steps: int | None = None  # since reset; None where there is no running episode

    def reset(self, episode: int) -> Observation:
        if episode < 0:
            raise ConfigError(f"episode {episode}: episodes are numbered from 0")
        self._scene, self._goal = draw_scene(self.task, episode)
        self._instruction = instruction(self.task, self._scene, self._goal)
        self._steps = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        if self._steps is None:
            raise ConfigError("step: this episode has ended, or none has begun; call reset first")
        advance(self._scene, checked_action(action))
        self._steps += 1
        success = self._task.succeeded(self._scene, self._goal)
        ended = self._steps >= self.max_steps
        if ended:
            self._steps = None
        return Step(self._observe(), float(success), success, ended, measures(self._scene, self._goal))

    def expert(self) -> Expert:
        return Expert(self.task, lambda: (self._scene, self._goal))

    def close(self) -> None:
        self._steps = None

    def _observe(self) -> Observation:
        known = dict(zip(GRIPPER, (*self._scene.gripper, self._scene.openness), strict=True))
        known |= object_positions(self._scene)
        state = np.array([known.get(name, 0.0) for name in self.state_names], dtype=np.float32)
        return Observation(image=render(self._scene, self.size), state=state, instruction=self._instruction)


def object_positions(scene: Scene) -> dict[str, float]:
    """Meters from the gripper, such as {"apple.x": 0.12}, of what is there."""
    return {
        f"{body.kind}.{axis}": float(offset)
        for body in scene.bodies
        for axis, offset in zip("xyz", body.position - scene.gripper, strict=True)
    }
