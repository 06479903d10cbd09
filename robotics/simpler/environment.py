"""SIMPLER's Google-robot tasks as an `Environment`: episodes by number, actions as policies say them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.errors import AccidentError, ConfigError, DataError, SelfFlowError, choose
from robotics.environment import Observation, Policy, Step, checked_action
from robotics.grippers import REPEATS, RULES, Sticky, sticky
from robotics.simpler.actions import ROTATIONS, proprio, rotation_vector
from robotics.simpler.client import Simulator, SimulatorError
from robotics.simpler.episodes import PUBLISHED, TASKS, VARIANTS, Episode, Scene, episodes, needed
from robotics.simpler.experts import expert_for

STATE = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper_closed")


class SimplerEnvironment:
    """One task of one variant. Implements `robotics.environment.Environment`.

    Args:
        task: a key of `TASKS`; see docs/robots_simpler.md.
        variant: of `VARIANTS`.
        rotation: how the rotation of an action is read: `rpy` or `axis_angle`.
        gripper: how an openness becomes SIMPLER's relative command: a rule of `robotics.grippers`.
        gripper_repeat: steps for which a change of the gripper is sent.
        raster: without ray tracing also where the protocol has it; scores are then not comparable with published ones.
        python: of SIMPLER's own environment, or a process of it; None: see `Simulator`.

    Raises:
        ConfigError: an unknown name, a task that the variant lacks, a simulator that is not installed.
        DataError: files of the scenes are missing.
    """

    name = "simpler"
    fps = 3.0
    state_names: tuple[str, ...] = STATE

    def __init__(
        self,
        task: str,
        variant: str = "visual_matching",
        *,
        rotation: str = "rpy",
        gripper: str = "cogact",
        gripper_repeat: int = REPEATS,
        raster: bool = False,
        python: str | Path | Simulator | None = None,
    ):
        choose("task", task, TASKS)
        choose("gripper", gripper, RULES)
        for what, chosen, allowed in (("variant", variant, VARIANTS), ("rotation", rotation, ROTATIONS)):
            choose(what, chosen, dict.fromkeys(allowed))
        self.task, self.variant, self.rotation, self.raster = task, variant, rotation, raster
        self.grid: tuple[Episode, ...] = episodes(task, variant)
        if not self.grid:
            raise ConfigError(f"SIMPLER has no {variant} of {task}")
        self.episodes: int | None = len(self.grid)
        self.max_steps = self.grid[0].scene.max_steps
        self.gripper, self.gripper_repeat = gripper, gripper_repeat
        self._sticky = Sticky()
        self.episode: int | None = None
        self._ended = True
        self._scene: Scene | None = None
        try:
            self.simulator = python if isinstance(python, Simulator) else Simulator(python)
        except SimulatorError as error:
            raise ConfigError(str(error)) from error
        try:
            versions = self.check()
        except SelfFlowError:
            if self.simulator is not python:
                self.simulator.close()
            raise
        shaded = any(episode.scene.ray_traced for episode in self.grid)
        self.protocol: dict[str, Any] = {
            "benchmark": "SIMPLER, Google robot",
            "variant": variant,
            "grid": len(self.grid),
            "renderer": "raster" if raster or not shaded else "ray tracing",
            "comparable": not (raster and shaded),
            **({} if (raster and shaded) or variant == "camera_variants" else published(task, variant)),
            "rotation": rotation,
            "gripper": gripper,
            "gripper_repeat": gripper_repeat,
            "versions": versions,
        }

    def check(self) -> dict[str, Any]:
        """Files and renderer, before an episode is begun; the simulator's versions.

        Raises:
            ConfigError: SIMPLER is not installed there, or cannot draw.
            DataError: files of the scenes are missing.
        """
        self._start()
        versions = self._ask("versions")
        if problem := versions.get("problem"):
            raise ConfigError(f"{self.simulator.python} has no SIMPLER ({problem}); see docs/robots_simpler.md")
        missing = self._ask("missing_files", needs=needed(self.grid))
        if missing:
            listed = "".join(f"\n  {path}" for path in missing[:10])
            more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise DataError(
                f"{self.task}, {self.variant}: {len(missing)} files of its scenes are missing:{listed}{more}\n"
                "SIMPLER would only log it, and every episode would fail"
            )
        try:
            self.simulator.ask("renderer")
        except SimulatorError as error:  # also where it died of it: the next try would, too
            raise ConfigError(str(error)) from error
        return versions

    def reset(self, episode: int) -> Observation:
        if not 0 <= episode < len(self.grid):
            raise ConfigError(f"episode {episode}: {self.task}, {self.variant} has 0 to {len(self.grid) - 1}")
        chosen = self.grid[episode]
        self._start()
        if self._scene != chosen.scene:
            self._scene = None
            self._ask("make", scene=chosen.scene.request(self.raster))
            self._scene = chosen.scene
        state = self._ask("reset", episode=chosen.request())
        self._sticky = Sticky()
        self.episode, self._ended = episode, False
        return self._observation(state)

    def step(self, action: np.ndarray) -> Step:
        values = checked_action(action)
        if self._ended:
            raise DataError("the episode has ended: reset before the next step")
        turn = rotation_vector(values[3:6], self.rotation)
        grip, self._sticky = sticky(self.gripper, float(values[6]), self._sticky, self.gripper_repeat)
        state = self._ask("step", action=np.array([*values[:3], *turn, grip]))
        self._ended = state["ended"]
        success = state["success"]
        info = {**self.grid[self.episode or 0].labels, **state["info"]}
        return Step(self._observation(state), float(success), success, state["ended"], info)

    def expert(self) -> Policy | None:
        return expert_for(self.task, self)

    def privileged(self) -> dict[str, Any]:
        """The simulator's own state, for experts: see `privileged` in robotics/simpler/worker.py."""
        return self._ask("privileged")

    def close(self) -> None:
        self._scene, self._ended = None, True
        self.simulator.close()

    def _observation(self, state: dict[str, Any]) -> Observation:
        self.poses = {"base": state["base_pose"], "tool": state["tcp_pose"]}
        read = proprio(state["base_pose"], state["tcp_pose"], state["gripper_closed"])
        return {"image": state["image"], "state": read, "instruction": state["instruction"]}

    def _start(self) -> None:
        """Start the simulator, also again after it has failed: what it held is then gone."""
        if not self.simulator.running:
            self._scene = None
            try:
                self.simulator.start()
            except SimulatorError as error:
                raise ConfigError(str(error)) from error

    def _ask(self, do: str, **request: Any) -> Any:
        try:
            return self.simulator.ask(do, **request)
        except SimulatorError as error:
            self._ended = True
            if error.crashed:
                lost = "" if self.episode is None else f"; episode {self.episode} is lost, those before it are not"
                raise AccidentError(f"{error}{lost}") from error
            raise ConfigError(str(error)) from error


def published(task: str, variant: str) -> dict[str, Any]:
    """Where published numbers of this task stand; nothing for a part of a task."""
    return {"published": {"task": task, "variant": variant}} if task in PUBLISHED else {}
