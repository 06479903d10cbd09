"""The tasks: where things lie at the beginning, what the instruction says, and when it is fulfilled.

Success follows SIMPLER's rules for the same tasks, in what a world without forces knows of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.keys import generator
from robotics.kinematic.scene import DRAWER, DRAWER_TRAVEL, HEIGHTS, Body, Scene, in_reach

KINDS = ("apple", "can", "sponge")  # all that lie on the table are of different kinds
AREA = 0.3  # meters from the middle of the table, along x and y, within which things lie
LIFTED = 0.02  # meters; SIMPLER's "significantly lifted"
MOVED = 0.03  # meters that the named object must have moved, as in SIMPLER's Move Near
NEAR = 0.24  # meters between centers: both half diagonals (7 cm) and 10 cm, as in SIMPLER's Move Near
APART = NEAR + MOVED  # meters between centers at the beginning: no task is fulfilled by chance, no grasp is ambiguous
KEPT_HEIGHT = 0.02  # meters by which any object may end higher than it started in Move Near
OPENED, SHUT, AJAR = 0.15, 0.05, 0.2  # meters: limits of SIMPLER, and how far a drawer to be closed is open
SHUT_AT = 0.34  # x of the handle of a closed drawer


@dataclass(frozen=True)
class Goal:
    """What one episode asks for: the numbers of the bodies that the instruction names."""

    source: int
    target: int | None = None


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        things: objects on the table; 0 where there is a drawer instead.
        max_steps: of an episode, about twice what the expert needs.
        instruction: with the places of `source` and `target`.
        succeeded: of a scene and its goal, now.
        extension: of the drawer at the beginning, in meters.
    """

    things: int
    max_steps: int
    instruction: str
    succeeded: Callable[[Scene, Goal], bool]
    extension: float = 0.0


def _reached(scene: Scene, goal: Goal) -> bool:
    return in_reach(scene.gripper, scene.bodies[goal.source])


def _picked(scene: Scene, goal: Goal) -> bool:
    body = scene.bodies[goal.source]
    return scene.held == goal.source and float(body.position[2]) - HEIGHTS[body.kind] > LIFTED


def _moved_near(scene: Scene, goal: Goal) -> bool:
    assert goal.target is not None
    source, target = scene.bodies[goal.source], scene.bodies[goal.target]
    paths = [distance(body.position, body.start) for body in scene.bodies]
    gaps = [distance(source.position, body.position) for body in scene.bodies if body is not source]
    low = all(float(body.position[2] - body.start[2]) <= KEPT_HEIGHT for body in scene.bodies)
    gap = distance(source.position, target.position)
    return low and paths[goal.source] > MOVED and paths[goal.source] == max(paths) and gap < NEAR and gap == min(gaps)


def _opened(scene: Scene, goal: Goal) -> bool:
    return scene.bodies[goal.source].extension >= OPENED


def _shut(scene: Scene, goal: Goal) -> bool:
    return scene.bodies[goal.source].extension <= SHUT


def _asks_for_nothing(scene: Scene, goal: Goal) -> bool:
    return True


TASKS: dict[str, Task] = {
    "reach": Task(1, 12, "reach {source}", _reached),
    "pick": Task(1, 16, "pick {source}", _picked),
    "move_near": Task(2, 20, "move {source} near {target}", _moved_near),
    "open_drawer": Task(0, 16, "open drawer", _opened),
    "close_drawer": Task(0, 16, "close drawer", _shut, extension=AJAR),
    "explore": Task(1, 12, "explore", _asks_for_nothing),  # moves at random, from which world models learn
}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Meters on the table, whatever the heights."""
    return float(np.hypot(*(one - other)[:2]))


def draw_scene(name: str, episode: int) -> tuple[Scene, Goal]:
    """The beginning of episode `episode` of a task, a function of both alone."""
    task, random = TASKS[name], generator("kinematic", name, episode)
    place = _uniform(random, 3)
    gripper = np.array([place[0] * 0.2 - 0.1, place[1] * 0.4 - 0.2, 0.22 + place[2] * 0.13])
    if task.things == 0:
        along = (_uniform(random, 1)[0] * 2 - 1) * AREA
        handle = np.array([SHUT_AT - task.extension, along, HEIGHTS[DRAWER]])
        return Scene(gripper, 1.0, [Body(DRAWER, handle, handle, closed=SHUT_AT)]), Goal(0)
    kinds = [KINDS[number] for number in torch.randperm(len(KINDS), generator=random).tolist()[: task.things]]
    spots: list[np.ndarray] = []
    while len(spots) < task.things:
        spot = (_uniform(random, 2) * 2 - 1) * AREA
        if all(distance(spot, other) >= APART for other in spots):
            spots.append(spot)
    starts = [np.array([*spot, HEIGHTS[kind]]) for kind, spot in zip(kinds, spots, strict=True)]
    bodies = [Body(kind, start, start) for kind, start in zip(kinds, starts, strict=True)]
    return Scene(gripper, 1.0, bodies), Goal(0, 1 if "{target}" in task.instruction else None)


def instruction(name: str, scene: Scene, goal: Goal) -> str:
    target = "" if goal.target is None else scene.bodies[goal.target].kind
    return TASKS[name].instruction.format(source=scene.bodies[goal.source].kind, target=target)


def measures(scene: Scene, goal: Goal) -> dict[str, Any]:
    """What success is judged by: meters and flags of a scene, for its record."""
    source = scene.bodies[goal.source]
    found: dict[str, Any] = {"holding": scene.bodies[scene.held].kind if scene.held is not None else None}
    if source.kind == DRAWER:
        return {**found, "extension": round(source.extension, 4), "travel": DRAWER_TRAVEL}
    found["to_source"] = round(float(np.linalg.norm(scene.gripper - source.position)), 4)
    found["lifted"] = round(float(source.position[2]) - HEIGHTS[source.kind], 4)
    if goal.target is not None:
        found["moved"] = round(distance(source.position, source.start), 4)
        found["to_target"] = round(distance(source.position, scene.bodies[goal.target].position), 4)
    return found


def _uniform(random: torch.Generator, count: int) -> np.ndarray:
    return torch.rand(count, generator=random, dtype=torch.float64).numpy()
