"""Scripted policies that read the simulator's own state, so that a score of zero must be the policy's fault.

They act through `Environment.step` as any policy does: the same rotations, the same sticky gripper, the same limits.
Each is a generator of actions, written as one would tell a person what to do. World axes in meters: x from the cabinet
toward the robot, z up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from robotics.environment import Observation, Policy
from robotics.simpler.actions import (
    axis_angle_to_quaternion,
    quaternion_product,
    quaternion_to_axis_angle,
    quaternion_to_rpy,
    rotated,
)

if TYPE_CHECKING:
    from robotics.simpler.environment import SimplerEnvironment

OPEN, CLOSED = 1.0, 0.0
FACE = 0.3125  # of a drawer's link to the front of its panel
TABLETOP_EDGE = 0.02  # x of the edge of the cabinet's top, under which the closed drawers are


def tilted(degrees: float, jaw: str) -> np.ndarray:
    """A turn of the tool, (4,) wxyz: it points forward (-x) and down, `degrees` below the horizontal.

    Args:
        jaw: the axis along which the fingers close: `side` (world y) or `plane` (within the plane of x and z).
    """
    angle = math.radians(degrees)
    approach = np.array([-math.cos(angle), 0.0, -math.sin(angle)])
    side = np.array([0.0, 1.0, 0.0])
    closing = -side if jaw == "side" else np.cross(approach, side)
    return _from_matrix(np.stack([np.cross(closing, approach), closing, approach], axis=1))


class Tool:
    """The gripper, moved step by step; every method yields the actions of its steps."""

    def __init__(self, environment: SimplerEnvironment):
        self.environment = environment

    @property
    def place(self) -> np.ndarray:
        return self.environment.poses["tool"][:3]

    def go(
        self,
        to: np.ndarray | list[float],
        turn: np.ndarray | None,
        openness: float,
        *,
        steps: int,
        stride: float = 0.07,
        near: float = 0.012,
    ) -> Iterator[np.ndarray]:
        """Move to a place in the world, until it is `near`, or for so many steps at most.

        Args:
            turn: (4,) wxyz to turn to on the way; None leaves it.
            stride: longest displacement of a step.
        """
        for _ in range(steps):
            way = np.asarray(to, dtype=np.float64) - self.place
            distance = float(np.linalg.norm(way))
            turning = np.zeros(3)
            if turn is not None:
                tool = self.environment.poses["tool"][3:]
                turning = quaternion_to_axis_angle(quaternion_product(turn, _inverse(tool)))
            if distance < near and float(np.linalg.norm(turning)) < 0.15:
                return
            yield self.action(way * min(1.0, stride / max(distance, 1e-9)), turning, openness)

    def stay(self, openness: float, steps: int) -> Iterator[np.ndarray]:
        for _ in range(steps):
            yield self.action(np.zeros(3), np.zeros(3), openness)

    def action(self, way: np.ndarray, turning: np.ndarray, openness: float) -> np.ndarray:
        """A displacement and a rotation vector in the world's axes, as an action of the environment."""
        angle = float(np.linalg.norm(turning))
        turning = turning * min(1.0, 0.6 / max(angle, 1e-9))
        to_base = _inverse(self.environment.poses["base"][3:])
        turning = rotated(to_base, turning)
        if self.environment.rotation == "rpy":
            turning = quaternion_to_rpy(axis_angle_to_quaternion(turning))
        return np.array([*rotated(to_base, way), *turning, openness])


def close_drawer(tool: Tool, drawer: str) -> Iterator[np.ndarray]:
    """Push its panel with the closed fingers."""
    yield from tool.stay(OPEN, 1)
    link = tool.environment.privileged()["links"][f"{drawer}_drawer"]
    side = _reachable(tool)
    height = link[2]
    pushing = tilted(45, "plane")
    front = link[0] + FACE
    yield from tool.go([front + 0.12, side, height + 0.12], pushing, CLOSED, steps=25, near=0.03)
    yield from tool.go([front + 0.06, side, height], pushing, CLOSED, steps=12, near=0.02)
    for _ in range(80):
        if tool.environment.privileged()["joints"][f"{drawer}_drawer_joint"] < 0.01:
            break
        yield from tool.go([-0.1, side, height], pushing, CLOSED, steps=1, stride=0.05)
    yield from tool.stay(CLOSED, 1)


def place_apple(tool: Tool, drawer: str) -> Iterator[np.ndarray]:
    """Hook the drawer open behind its panel, then pick the apple from the top and let it fall in.

    The handles are only drawn: nothing can hold them. But there is a slot of 10 cm between the panel and the top, and
    the panel stands 4 cm above the drawer's inner wall.
    """
    yield from tool.stay(OPEN, 1)
    side = _reachable(tool)
    panel = tool.environment.privileged()["links"][f"{drawer}_drawer"][2] + 0.07  # height of its upper edge
    hook = tilted(45, "side")
    yield from tool.go([0.12, side, panel + 0.165], hook, CLOSED, steps=22, near=0.02)
    for x, z, steps in ((0.095, 0.13, 6), (0.02, 0.045, 6), (-0.06, -0.03, 8)):
        yield from tool.go([x, side, panel + z], hook, CLOSED, steps=steps, stride=0.05, near=0.01)
    for _ in range(16):
        if tool.environment.privileged()["joints"][f"{drawer}_drawer_joint"] > 0.19:  # room for the apple
            break
        yield from tool.go([tool.place[0] + 0.06, side, panel - 0.04], None, CLOSED, steps=1, stride=0.06)
    yield from tool.go(tool.place + np.array([0.06, 0.0, 0.1]), None, CLOSED, steps=3, near=0.02)
    picking = tilted(70, "plane")
    yield from tool.go([0.16, side, panel + 0.3], picking, OPEN, steps=10, stride=0.08, near=0.05)

    apple = next(iter(tool.environment.privileged()["objects"].values()))[:3]
    yield from tool.go(apple + np.array([0.02, 0.0, 0.13]), picking, OPEN, steps=14, stride=0.08, near=0.02)
    yield from tool.go(apple + np.array([0.0, 0.0, 0.05]), picking, OPEN, steps=8, stride=0.06)
    yield from tool.go(apple + np.array([0.0, 0.0, -0.008]), picking, OPEN, steps=8, stride=0.04, near=0.008)
    yield from tool.stay(CLOSED, 6)
    yield from tool.go([apple[0], apple[1], panel + 0.23], picking, CLOSED, steps=8, stride=0.06, near=0.02)
    inside = (TABLETOP_EDGE + tool.environment.privileged()["links"][f"{drawer}_drawer"][0] + FACE) / 2
    yield from tool.go([inside, apple[1], panel + 0.21], picking, CLOSED, steps=10, stride=0.06, near=0.02)
    yield from tool.go([inside, apple[1], panel + 0.05], picking, CLOSED, steps=8, stride=0.06, near=0.02)
    yield from tool.stay(OPEN, 10)


class Expert:
    """A script as a `Policy`; after its end it stays where it is."""

    def __init__(self, environment: SimplerEnvironment, script: Callable[[Tool, str], Iterator[np.ndarray]]):
        self.tool, self.script = Tool(environment), script
        self.moves: Iterator[np.ndarray] | None = None
        self.openness = OPEN

    def reset(self, instruction: str, seed: int = 0) -> None:
        """`instruction` names the drawer: "close middle drawer". Nothing is drawn at random."""
        del seed
        drawer = next(word for word in ("top", "middle", "bottom") if word in instruction.split())
        self.moves = self.script(self.tool, drawer)

    def select_action(self, observation: Observation) -> np.ndarray:
        del observation
        action = None if self.moves is None else next(self.moves, None)
        if action is None:
            action = self.tool.action(np.zeros(3), np.zeros(3), self.openness)
        self.openness = float(action[6])
        return action


SCRIPTS: dict[str, Callable[[Tool, str], Iterator[np.ndarray]]] = {
    "close_drawer": close_drawer,
    "close_top_drawer": close_drawer,
    "close_middle_drawer": close_drawer,
    "close_bottom_drawer": close_drawer,
    "place_apple": place_apple,
}


def expert_for(task: str, environment: SimplerEnvironment) -> Policy | None:
    """The expert of a task, or None."""
    script = SCRIPTS.get(task)
    return None if script is None else Expert(environment, script)


def _reachable(tool: Tool) -> float:
    """y at which the arm works: a little to its own side of the robot, on the cabinet's width of 0.6 m."""
    return float(np.clip(tool.environment.poses["base"][1] + 0.09, -0.2, 0.2))


def _inverse(quaternion: Any) -> np.ndarray:
    return np.asarray(quaternion) * np.array([1.0, -1.0, -1.0, -1.0])


def _from_matrix(matrix: np.ndarray) -> np.ndarray:
    """(4,) wxyz of a rotation matrix (3, 3), by its largest component."""
    diagonal = np.diag(matrix)
    squares = np.array([1.0 + diagonal.sum(), *(1.0 + 2.0 * diagonal - diagonal.sum())])
    largest = int(np.argmax(squares))
    if largest == 0:
        rest = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
        found = np.array([squares[0], *rest])
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        found = np.zeros(4)
        found[0] = matrix[k, j] - matrix[j, k]
        found[1 + i], found[1 + j], found[1 + k] = (
            squares[largest],
            matrix[j, i] + matrix[i, j],
            matrix[k, i] + matrix[i, k],
        )
    return found / np.linalg.norm(found)
