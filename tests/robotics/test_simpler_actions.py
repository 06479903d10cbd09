"""Rotations against scipy, and the state of RT-1's data from recorded poses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from core.errors import ConfigError
from robotics.simpler.actions import (
    axis_angle_to_quaternion,
    proprio,
    quaternion_product,
    quaternion_to_axis_angle,
    quaternion_to_rpy,
    rotated,
    rotation_vector,
    rpy_to_quaternion,
)

RECORDED = json.loads((Path(__file__).parent / "simpler_resets.json").read_text())


def scipy_of(quaternion: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(quaternion, -1))  # scipy has xyzw


def test_rotations_are_scipys():
    random = np.random.default_rng(0)
    for rpy in random.uniform(-math.pi / 2, math.pi / 2, (1000, 3)):
        expected = Rotation.from_euler("xyz", rpy)  # lower case: about fixed axes, roll first
        np.testing.assert_allclose(rotation_vector(rpy, "rpy"), expected.as_rotvec(), atol=1e-9)
        back = scipy_of(rpy_to_quaternion(quaternion_to_rpy(rpy_to_quaternion(rpy))))
        assert (back * expected.inv()).magnitude() < 1e-7
    for vector in random.uniform(-math.pi / 2, math.pi / 2, (1000, 3)):
        expected = Rotation.from_rotvec(vector)
        assert (scipy_of(axis_angle_to_quaternion(vector)) * expected.inv()).magnitude() < 1e-7
        np.testing.assert_array_equal(rotation_vector(vector, "axis_angle"), vector)
        back = quaternion_to_axis_angle(axis_angle_to_quaternion(vector))
        np.testing.assert_allclose(Rotation.from_rotvec(back).as_matrix(), expected.as_matrix(), atol=1e-9)


def test_products_and_rotated_vectors_are_scipys():
    random = np.random.default_rng(1)
    for _ in range(100):
        first, second = (np.roll(Rotation.random(rng=random).as_quat(), 1) for _ in range(2))
        product = scipy_of(quaternion_product(first, second))
        assert (product * (scipy_of(first) * scipy_of(second)).inv()).magnitude() < 1e-7
        vector = random.normal(size=3)
        np.testing.assert_allclose(rotated(first, vector), scipy_of(first).apply(vector), atol=1e-12)


def test_the_two_readings_of_a_rotation_differ():
    angles = np.array([0.4, 0.3, -0.2])
    read = [Rotation.from_rotvec(rotation_vector(angles, kind)) for kind in ("rpy", "axis_angle")]
    assert math.degrees((read[0] * read[1].inv()).magnitude()) > 2
    with pytest.raises(ConfigError, match="'euler' is not one of rpy, axis_angle"):
        rotation_vector(angles, "euler")


def test_a_small_rotation_and_none_are_not_divided_by_zero():
    for vector in (np.zeros(3), np.full(3, 1e-12)):
        np.testing.assert_allclose(rotation_vector(vector, "rpy"), vector, atol=1e-15)


@pytest.mark.parametrize("name", ["drawer", "apple"])
def test_the_state_of_a_recorded_reset(name):
    reset = RECORDED[name]
    base, tool = np.array(reset["base_pose"]), np.array(reset["tcp_pose"])
    inverse = scipy_of(base[3:]).inv()
    place, turn = inverse.apply(tool[:3] - base[:3]), (inverse * scipy_of(tool[3:])).as_quat(canonical=True)
    state = proprio(base, tool, reset["gripper_closed"])
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [*place, *turn, reset["gripper_closed"]], atol=1e-6)
    # By hand: the robot stands at x 0.652 and looks along -x, so forward is minus the world's x.
    np.testing.assert_allclose(state[:2], [base[0] - tool[0], base[1] - tool[1]], atol=1e-4)
    assert state[6] >= 0
