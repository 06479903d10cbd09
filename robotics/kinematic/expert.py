"""Scripted experts: one reactive rule per task, so that they also recover from a missed grasp or a push."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from core.keys import generator
from robotics.environment import Observation
from robotics.kinematic.scene import DRAWER, HEIGHTS, MAX_STEP, Body, Scene
from robotics.kinematic.tasks import AREA, Goal, distance

CLOSE_ENOUGH = 0.04  # meters, along each axis, from which the expert closes; a grasp needs 0.10
CARRY = 0.25  # height to which a picked object is lifted
SLOPE = 0.6  # meters that the expert stays above its goal for each meter beside it
BESIDE = 0.13  # meters between centers where Move Near puts an object down
CLEAR = 0.2  # meters that it then keeps from any other object
OPEN, SHUT = 1.0, 0.0
MOSTLY_OPEN = 0.7  # share of the steps of exploration


class Expert:
    """Reads the scene of its environment, not the image."""

    def __init__(self, task: str, see: Callable[[], tuple[Scene, Goal]]):
        self.rule, self.see = RULES[task], see

    def reset(self, instruction: str, seed: int = 0) -> None:
        """Nothing to reset: it is stateless and deterministic."""

    def select_action(self, observation: Observation) -> np.ndarray:
        return self.rule(*self.see())


def _action(scene: Scene, target: np.ndarray, openness: float) -> np.ndarray:
    step = np.clip(target - scene.gripper, -MAX_STEP, MAX_STEP)
    return np.array([*step, 0, 0, 0, openness])


def _still(scene: Scene, openness: float) -> np.ndarray:
    return _action(scene, scene.gripper, openness)


def _approach(scene: Scene, body: Body) -> np.ndarray:
    """Toward a body with open fingers, sinking as it comes nearer."""
    above = SLOPE * max(0.0, distance(scene.gripper, body.position) - CLOSE_ENOUGH)
    return _action(scene, body.position + np.array([0, 0, above]), OPEN)


def _grasp(scene: Scene, number: int) -> np.ndarray | None:
    """The next action toward holding a body, or None while it is held."""
    body = scene.bodies[number]
    if scene.held == number:
        return None
    near = bool((np.abs(scene.gripper - body.position) <= CLOSE_ENOUGH).all())
    if scene.held is not None or scene.openness < 0.5:  # around another body, or around nothing
        return _still(scene, OPEN)
    return _still(scene, SHUT) if near else _approach(scene, body)


def reach(scene: Scene, goal: Goal) -> np.ndarray:
    return _approach(scene, scene.bodies[goal.source])


def pick(scene: Scene, goal: Goal) -> np.ndarray:
    lift = np.array([*scene.gripper[:2], CARRY])
    grasp = _grasp(scene, goal.source)
    return _action(scene, lift, SHUT) if grasp is None else grasp


def move_near(scene: Scene, goal: Goal) -> np.ndarray:
    source = scene.bodies[goal.source]
    spot = _spot(scene, goal)
    if distance(source.position, spot) <= CLOSE_ENOUGH:  # there: let go, and stay
        return _still(scene, OPEN)
    grasp = _grasp(scene, goal.source)
    if grasp is not None:
        return grasp
    # Along the table: what is lifted must come down again, which makes episodes longer and teaches nothing here.
    carry = spot - source.position
    carry[2] = HEIGHTS[source.kind] - source.position[2]
    return _action(scene, scene.gripper + carry, SHUT)


def _spot(scene: Scene, goal: Goal) -> np.ndarray:
    """Where to put the source down: beside the target, on the side it comes from unless another object is there."""
    assert goal.target is not None
    source, target = scene.bodies[goal.source], scene.bodies[goal.target]
    others = [body for number, body in enumerate(scene.bodies) if number not in (goal.source, goal.target)]
    towards = np.arctan2(*(source.start - target.start)[[1, 0]])
    for turn in (0, 1, -1, 2, -2, 3, -3, 4):  # eighths of a circle
        angle = towards + turn * np.pi / 4
        spot = target.position + BESIDE * np.array([np.cos(angle), np.sin(angle), 0])
        spot[2] = HEIGHTS[source.kind]
        on_table = bool((np.abs(spot[:2]) <= AREA + 0.1).all())
        if on_table and all(distance(spot, other.position) >= CLEAR for other in others):
            break
    return spot


def slide(scene: Scene, goal: Goal, extension: float) -> np.ndarray:
    """Take the handle and bring the drawer to `extension` meters."""
    drawer = scene.bodies[goal.source]
    assert drawer.kind == DRAWER
    grasp = _grasp(scene, goal.source)
    if grasp is not None:
        return grasp
    return _action(scene, scene.gripper + np.array([drawer.extension - extension, 0, 0]), SHUT)


def explore(scene: Scene, goal: Goal) -> np.ndarray:
    """Anywhere, with fingers that are mostly open: experts alone never show what other actions would lead to."""
    random = generator("explore", *(round(1e6 * place) for place in scene.gripper.tolist()))
    drawn = torch.rand(4, generator=random, dtype=torch.float64).numpy()
    step = (2 * drawn[:3] - 1) * MAX_STEP
    return np.array([*step, 0, 0, 0, OPEN if drawn[3] < MOSTLY_OPEN else SHUT])


RULES: dict[str, Callable[[Scene, Goal], np.ndarray]] = {
    "reach": reach,
    "pick": pick,
    "move_near": move_near,
    "open_drawer": lambda scene, goal: slide(scene, goal, 0.22),
    "close_drawer": lambda scene, goal: slide(scene, goal, 0.0),
    "explore": explore,
}
