"""The tabletop as an environment that rollouts know."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.errors import ConfigError, choose
from robotics.environment import Observation, Step, checked_action
from robotics.kinematic.expert import Expert
from robotics.kinematic.render import render
from robotics.kinematic.scene import GRASP, MAX_STEP, advance
from robotics.kinematic.tasks import TASKS, draw_scene, instruction, measures

SIZES = (16, 512)  # pixels of a side that make sense
IMAGE = 64


class KinematicEnvironment:
    """One task on the tabletop; see `robotics.environment.Environment`.

    Args:
        task: a key of `tasks.TASKS`.
        size: of a side of its square image, in pixels.

    Raises:
        ConfigError: no such task, or no such size.
    """

    name, fps = "kinematic", 3.0
    episodes: int | None = None
    state_names: tuple[str, ...] = ("x", "y", "z", "gripper")

    def __init__(self, task: str, size: int = IMAGE):
        self._task = choose("task of the kinematic environment", task, TASKS)
        if not SIZES[0] <= size <= SIZES[1]:
            raise ConfigError(f"an image of {size} pixels; allowed are {SIZES[0]} to {SIZES[1]}")
        self.task, self.size, self.max_steps = task, size, self._task.max_steps
        self.protocol: dict[str, Any] = {
            "variant": "kinematic",
            "comparable": "with runs on this environment only",
            "image": [size, size],
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
        state = np.array([*self._scene.gripper, self._scene.openness], dtype=np.float32)
        return Observation(image=render(self._scene, self.size), state=state, instruction=self._instruction)
