"""What lies on the table, and what one action changes.

Meters in the robot's axes: x away from the robot, y to its left, z up from the table. The gripper is a point between
the fingertips that looks down and does not turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_STEP = 0.10  # meters that the gripper moves in one step at most, along each axis
GRASP = 0.10  # meters between gripper and center, horizontally and in height, within which closing grasps
LOW, HIGH = np.array([-0.42, -0.42, 0.04]), np.array([0.42, 0.42, 0.45])  # where the gripper can be
DRAWER_TRAVEL = 0.25  # meters between a closed drawer's handle and a fully opened one's
DRAWER = "drawer"
# Kind -> height of its center above what it stands on, and how far the gripper is open while it holds one.
HEIGHTS = {"apple": 0.045, "can": 0.055, "sponge": 0.035, DRAWER: 0.12}
WIDTHS = {"apple": 0.35, "can": 0.3, "sponge": 0.4, DRAWER: 0.15}


@dataclass
class Body:
    """A thing that can be grasped. `position` is its center; of a drawer, its handle."""

    kind: str
    position: np.ndarray  # (3,)
    start: np.ndarray  # (3,) at the beginning of the episode
    closed: float = 0.0  # of a drawer: x of the handle where it is shut

    @property
    def extension(self) -> float:
        """Meters that a drawer is open."""
        return self.closed - float(self.position[0])


@dataclass
class Scene:
    """`held` is the index of the body between the fingers. `openness` is 1 open, 0 closed."""

    gripper: np.ndarray  # (3,)
    openness: float
    bodies: list[Body]
    held: int | None = None


def in_reach(gripper: np.ndarray, body: Body) -> bool:
    """Whether closing the gripper here grasps the body, if no other one is nearer."""
    offset = gripper - body.position
    return float(np.hypot(offset[0], offset[1])) <= GRASP and abs(float(offset[2])) <= GRASP


def advance(scene: Scene, action: np.ndarray) -> None:
    """One control step, in place: first the gripper moves, then it opens or closes.

    Args:
        action: float (7,), see `robotics.environment.ACTION_NAMES`. Longer displacements are cut to MAX_STEP along each
            axis; the rotation is ignored; openness below 0.5 closes.
    """
    move(scene, np.clip(action[:3], -MAX_STEP, MAX_STEP))
    openness = float(np.clip(action[6], 0, 1))
    closing = openness < 0.5
    if not closing:
        release(scene)
    elif scene.held is None and scene.openness >= 0.5:  # only fingers that were apart get around something
        near = [number for number, body in enumerate(scene.bodies) if in_reach(scene.gripper, body)]
        distances = [float(np.linalg.norm(scene.bodies[number].position - scene.gripper)) for number in near]
        scene.held = near[int(np.argmin(distances))] if near else None
    scene.openness = openness if scene.held is None else WIDTHS[scene.bodies[scene.held].kind]


def move(scene: Scene, displacement: np.ndarray) -> None:
    """The gripper, within its reach, and what it holds; a drawer lets it go along x only, and as far as it opens."""
    target = np.clip(scene.gripper + displacement, LOW, HIGH)
    if scene.held is not None:
        body = scene.bodies[scene.held]
        carried = body.position + target - scene.gripper
        if body.kind == DRAWER:
            x = float(np.clip(carried[0], body.closed - DRAWER_TRAVEL, body.closed))
            carried = np.array([x, *body.position[1:]])
            target = scene.gripper + carried - body.position
        carried[2] = max(carried[2], HEIGHTS[body.kind])  # the table is solid
        body.position = carried
    scene.gripper = target


def release(scene: Scene) -> None:
    """What was held drops onto the table; a drawer stays as it is."""
    if scene.held is not None:
        body = scene.bodies[scene.held]
        body.position = np.array([*body.position[:2], HEIGHTS[body.kind]])
        scene.held = None
