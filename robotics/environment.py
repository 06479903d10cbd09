"""What a rollout asks of an environment, whichever it is: the tabletop in numpy, or SIMPLER through its client.

An environment is made for one task. Episode i is a function of (task, i) alone: the same numbers after any other
episodes, in any process. An environment may keep simulators, scenes and shaders between episodes, as long as that
holds. All run at their control rate until `ended`: success does not end an episode, since what counts is whether it
lasts.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from core.errors import DataError

# Of an action, in this order: meters in the base's axes, radians, openness of the gripper.
ACTION_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")


class Observation(TypedDict):
    """What a policy sees.

    image: uint8 (H, W, 3), RGB, of the one camera, at the environment's own size.
    state: float32 (S,), by the names of `Environment.state_names`; S may be 0.
    instruction: what is to be done now. It may change within an episode; the rest of an action chunk is then dropped.
    """

    image: np.ndarray
    state: np.ndarray
    instruction: str


class Step(NamedTuple):
    """What one action led to.

    observation: after the action.
    reward: of this step, 1.0 where `success` else 0.0, unless the environment defines another.
    success: the task is fulfilled at this moment. Whether an episode counts (last, any, hold) is up to the rollout.
    ended: the step limit is reached, or the simulator ended the episode. `step` may not be called again before `reset`.
    info: measures behind `success` (flags, distances in meters), JSON values only; kept for the last step of a record.
    """

    observation: Observation
    reward: float
    success: bool
    ended: bool
    info: dict[str, Any]


class Policy(Protocol):
    """What a rollout asks of a policy: one instance per process, told of every episode.

    Policies that predict chunks also have `predict_action_chunk(observation) -> (K, 7)`, which `--open-loop` needs;
    those that predict a video have `predicted_video`, uint8 (T, H, W, 3) of the last prediction in this episode, or
    None: at the control rate, frame 0 is the image that it was made from.
    """

    def reset(self, instruction: str, seed: int = 0) -> None:
        """An episode begins. All draws of the policy in it are functions of `seed` and the number of the step."""
        ...

    def select_action(self, observation: Observation) -> np.ndarray:
        """The next action, float (7,), in the units of `ACTION_NAMES`."""
        ...


class Environment(Protocol):
    """One task of one simulator.

    Attributes:
        name: of the environment, as `--env` takes it.
        task: as `--task` takes it.
        fps: control steps per second, which is also the rate of its images. 3 for all that stand in for RT-1.
        max_steps: step limit of an episode.
        episodes: number of episodes that the protocol fixes (a grid), or None where any i >= 0 is one.
        state_names: of the entries of `Observation.state`.
        protocol: what a success rate must be read with: variant, grid, renderer, versions, how rotations and the
            gripper are read. JSON values only; the whole of it goes into eval_info.json. Where published numbers can
            stand beside it, its `published` is {"task": ..., "variant": ...}, as robotics/published.yaml names them.
    """

    name: str
    task: str
    fps: float
    max_steps: int
    episodes: int | None
    state_names: tuple[str, ...]
    protocol: dict[str, Any]

    def reset(self, episode: int) -> Observation:
        """Episode number `episode` >= 0 of this task, at its first observation.

        Raises:
            ConfigError: there is no such episode.
        """
        ...

    def step(self, action: np.ndarray) -> Step:
        """Carry out one action and observe.

        Args:
            action: float (7,), see `ACTION_NAMES`: a displacement of the gripper in meters along the axes of the
                robot's base, a rotation of it in radians (read as axis-angle or as roll, pitch, yaw: an option of the
                environment, named in `protocol`), and how far the gripper shall be open: 1 open, 0 closed, absolute.
                Whatever the simulator takes instead (a relative gripper, limits, scales) is up to the environment.

        Raises:
            DataError: another width, NaN or infinite values.
            AccidentError: the simulator failed.
        """
        ...

    def expert(self) -> Policy | None:
        """A scripted policy that reads this environment's own state, or None where the task has none."""
        ...

    def close(self) -> None:
        """Free the simulator; may be called twice."""
        ...


def checked_action(action: Any, names: tuple[str, ...] = ACTION_NAMES) -> np.ndarray:
    """An action as float64 (len(names),).

    Raises:
        DataError: another width, or values that are NaN or infinite.
    """
    values = np.asarray(action, dtype=np.float64)
    if values.shape != (len(names),):
        width = f"({len(names)},): {', '.join(names)}"
        raise DataError(f"an action of shape {values.shape}; this environment takes {width}")
    if not np.isfinite(values).all():
        wrong = [f"{name} {value}" for name, value in zip(names, values, strict=True) if not np.isfinite(value)]
        raise DataError(f"an action that is not finite: {', '.join(wrong)}; the policy or its statistics are broken")
    return values
