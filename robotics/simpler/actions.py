"""Rotations: from what a policy says to what SIMPLER takes, and from its poses to the state that RT-1's data have.

SIMPLER wants a displacement in meters and a rotation vector, both in the axes of the robot's base. Policies trained on
RT-1 say roll, pitch, yaw. Quaternions are wxyz here, as SAPIEN has them, but for `proprio`.
"""

from __future__ import annotations

import math

import numpy as np

from core.errors import ConfigError

ROTATIONS = ("rpy", "axis_angle")


def quaternion_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rotation `second`, then `first`; both (4,) wxyz."""
    w, x, y, z = first
    a, b, c, d = second
    return np.array(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
    )


def rotated(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A vector (3,), rotated by a unit quaternion (4,) wxyz."""
    axis = quaternion[1:]
    return vector + 2.0 * np.cross(axis, np.cross(axis, vector) + quaternion[0] * vector)


def rpy_to_quaternion(rpy: np.ndarray) -> np.ndarray:
    """Roll about x, then pitch about y, then yaw about z, all about fixed axes (radians); (4,) wxyz."""
    roll, pitch, yaw = (np.eye(3)[axis] * angle for axis, angle in enumerate(rpy))
    turns = [axis_angle_to_quaternion(turn) for turn in (yaw, pitch, roll)]
    return quaternion_product(turns[0], quaternion_product(turns[1], turns[2]))


def axis_angle_to_quaternion(vector: np.ndarray) -> np.ndarray:
    """A rotation vector (3,), its length the angle in radians; (4,) wxyz."""
    angle = float(np.linalg.norm(vector))
    scale = math.sin(angle / 2) / angle if angle > 1e-9 else 0.5
    return np.array([math.cos(angle / 2), *(scale * np.asarray(vector, dtype=np.float64))])


def quaternion_to_axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """The rotation vector (3,) of a unit quaternion (4,) wxyz, of at most half a turn."""
    w, axis = quaternion[0], quaternion[1:]
    if w < 0:
        w, axis = -w, -axis
    length = float(np.linalg.norm(axis))
    if length < 1e-9:
        return 2.0 * axis
    return axis * (2.0 * math.atan2(length, w) / length)


def quaternion_to_rpy(quaternion: np.ndarray) -> np.ndarray:
    """The inverse of `rpy_to_quaternion`: (3,) radians, the pitch within a quarter turn."""
    w, x, y, z = quaternion
    return np.array(
        [
            math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)),
            math.asin(max(-1.0, min(1.0, 2.0 * (w * y - z * x)))),
            math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)),
        ]
    )


def rotation_vector(rotation: np.ndarray, kind: str) -> np.ndarray:
    """A policy's rotation (3,) as the rotation vector that SIMPLER takes.

    Args:
        kind: `rpy`, as Octo, CogACT and pi read RT-1's data; `axis_angle`, as SIMPLER's RT-1 does.
    """
    if kind not in ROTATIONS:
        raise ConfigError(f"rotation: {kind!r} is not one of {', '.join(ROTATIONS)}")
    return quaternion_to_axis_angle(rpy_to_quaternion(rotation)) if kind == "rpy" else rotation.astype(np.float64)


def proprio(base_pose: np.ndarray, tcp_pose: np.ndarray, gripper_closed: float) -> np.ndarray:
    """The state of RT-1's data: `base_pose_tool_reached` and `gripper_closed`.

    Args:
        base_pose, tcp_pose: (7,) in the world, xyz and wxyz, as SIMPLER has them.
        gripper_closed: 0 open, 1 closed.

    Returns:
        float32 (8,): xyz in meters and the quaternion xyzw of the tool in the base's axes (w >= 0), gripper_closed.
    """
    inverse = base_pose[3:] * np.array([1.0, -1.0, -1.0, -1.0])
    place = rotated(inverse, tcp_pose[:3] - base_pose[:3])
    turn = quaternion_product(inverse, tcp_pose[3:])
    turn = turn / np.linalg.norm(turn)
    if turn[0] < 0:  # both signs are the same rotation
        turn = -turn
    return np.array([*place, *turn[1:], turn[0], gripper_closed], dtype=np.float32)
