"""Rotations as three numbers: roll, pitch and yaw, or axis times angle.

Roll, pitch and yaw turn about the fixed axes x, y and z, in this order: R = Rz(yaw) Ry(pitch) Rx(roll). RT-1's
catalog calls its `rotation_delta` so; SIMPLER takes axis times angle. The two readings agree for rotations about one
axis alone: those of (.4, .3, -.2) lie 4.3 degrees apart.
"""

from __future__ import annotations

import numpy as np

KINDS = ("rpy", "axis_angle")


def rpy_to_matrix(rpy: np.ndarray) -> np.ndarray:
    """(..., 3) roll, pitch, yaw in radians -> (..., 3, 3)."""
    roll, pitch, yaw = np.moveaxis(np.asarray(rpy, dtype=np.float64), -1, 0)
    return _about(2, yaw) @ _about(1, pitch) @ _about(0, roll)


def matrix_to_rpy(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 3) roll, pitch, yaw in radians, pitch in [-pi/2, pi/2].

    Where the pitch is a right angle only a sum of roll and yaw is defined, and the roll is 0.
    """
    m = np.asarray(matrix, dtype=np.float64)
    flat = np.hypot(m[..., 0, 0], m[..., 1, 0])  # cosine of the pitch
    locked = flat < 1e-9
    roll = np.where(locked, 0.0, np.arctan2(m[..., 2, 1], m[..., 2, 2]))
    pitch = np.arctan2(-m[..., 2, 0], flat)
    yaw = np.where(locked, np.arctan2(-m[..., 0, 1], m[..., 1, 1]), np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def axis_angle_to_matrix(vector: np.ndarray) -> np.ndarray:
    """(..., 3) axis times angle in radians -> (..., 3, 3), by Rodrigues' formula."""
    v = np.asarray(vector, dtype=np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    zero = np.zeros_like(v[..., 0])
    x, y, z = np.moveaxis(v, -1, 0)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*v.shape[:-1], 3, 3)
    # sin(a) / a and (1 - cos(a)) / a^2, which sinc keeps exact near 0
    first, second = np.sinc(angle / np.pi), np.sinc(angle / (2 * np.pi)) ** 2 / 2
    return np.eye(3) + first * cross + second * (cross @ cross)


def matrix_to_axis_angle(matrix: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> (..., 3) axis times angle, the angle in [0, pi]; through the quaternion with the largest part."""
    m = np.asarray(matrix, dtype=np.float64)
    d = np.moveaxis(np.diagonal(m, axis1=-2, axis2=-1), -1, 0)
    trace = d.sum(axis=0)
    # 4 q q^T of the quaternion q = (w, x, y, z); any of its rows is q times a number
    off = {pair: (m[..., pair[0], pair[1]], m[..., pair[1], pair[0]]) for pair in ((2, 1), (0, 2), (1, 0))}
    minus = [upper - lower for upper, lower in off.values()]  # 4 w x, 4 w y, 4 w z
    yz, xz, xy = (upper + lower for upper, lower in off.values())
    rows = np.stack(
        [
            np.stack([1 + trace, *minus], axis=-1),
            np.stack([minus[0], 1 + 2 * d[0] - trace, xy, xz], axis=-1),
            np.stack([minus[1], xy, 1 + 2 * d[1] - trace, yz], axis=-1),
            np.stack([minus[2], xz, yz, 1 + 2 * d[2] - trace], axis=-1),
        ],
        axis=-2,
    )  # (..., 4, 4)
    largest = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(rows, largest[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    q = np.where(q[..., :1] < 0, -q, q)
    length = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(length, q[..., :1])
    return q[..., 1:] * np.where(length > 1e-12, angle / np.maximum(length, 1e-300), 2.0)


def rpy_to_axis_angle(rpy: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3)."""
    return matrix_to_axis_angle(rpy_to_matrix(rpy))


def axis_angle_to_rpy(vector: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3)."""
    return matrix_to_rpy(axis_angle_to_matrix(vector))


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """(...,) -> (..., 3, 3) turn about x, y or z."""
    cosine, sine = np.cos(angle), np.sin(angle)
    found = np.zeros((*np.shape(angle), 3, 3))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    found[..., axis, axis] = 1
    found[..., first, first] = found[..., second, second] = cosine
    found[..., first, second], found[..., second, first] = -sine, sine
    return found
