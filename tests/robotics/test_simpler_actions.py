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


@pytest.mark.parametrize("name", RECORDED)
def test_the_state_of_a_recorded_reset(name):
    reset = RECORDED[name]
    base, tool = np.array(reset["base_pose"]), np.array(reset["tcp_pose"])
    inverse = scipy_of(base[3:]).inv()
    place, turn = inverse.apply(tool[:3] - base[:3]), (inverse * scipy_of(tool[3:])).as_quat(canonical=True)
    state = proprio(base, tool, reset["gripper_closed"])
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [*place, *turn, reset["gripper_closed"]], atol=1e-6)
    assert state[6] >= 0


def test_the_state_of_a_recorded_reset_by_hand():
    """Base at (0.6520, 0.0090, 0.0790), half a turn about z; tool at (0.2126, 0.2274, 1.0409), wxyz (0.0325, -0.7802,
    -0.6039, 0.1601). So x and y of the difference change their signs; the conjugate of (0, 0, 0, 1) times (w, x, y, z)
    is (z, y, -x, -w)."""
    by_hand = [0.4394, -0.2184, 0.9619, -0.6039, 0.7802, -0.0325, 0.1601, 0.0]
    state = proprio(np.array(RECORDED["drawer"]["base_pose"]), np.array(RECORDED["drawer"]["tcp_pose"]), 0.0)
    np.testing.assert_allclose(state, by_hand, atol=1e-4)


def test_where_the_robot_stands_changes_nothing_of_its_own_state():
    """Two recorded places with another yaw; the arm begins the same."""
    states = [
        proprio(np.array(reset["base_pose"]), np.array(reset["tcp_pose"]), reset["gripper_closed"])
        for reset in RECORDED.values()
    ]
    assert RECORDED["drawer"]["base_pose"] != RECORDED["drawer turned"]["base_pose"]
    for state in states[1:]:
        np.testing.assert_allclose(state, states[0], atol=1e-4)
