"""Rotations against scipy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy", reason="rotations are compared with scipy")

from scipy.spatial import transform

from modalities.actions.rotations import (
    axis_angle_to_matrix,
    axis_angle_to_rpy,
    matrix_to_axis_angle,
    matrix_to_rpy,
    rpy_to_axis_angle,
    rpy_to_matrix,
)

VECTORS = np.random.default_rng(0).uniform(-np.pi / 2, np.pi / 2, (1000, 3))


def test_both_readings_of_three_numbers():
    rpy = transform.Rotation.from_euler("xyz", VECTORS)
    np.testing.assert_allclose(rpy_to_matrix(VECTORS), rpy.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(rpy_to_axis_angle(VECTORS), rpy.as_rotvec(), atol=1e-12)
    np.testing.assert_allclose(matrix_to_rpy(rpy.as_matrix()), VECTORS, atol=1e-9)
    turned = transform.Rotation.from_rotvec(VECTORS)
    np.testing.assert_allclose(axis_angle_to_matrix(VECTORS), turned.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(axis_angle_to_rpy(VECTORS), turned.as_euler("xyz"), atol=1e-12)
    np.testing.assert_allclose(rpy_to_axis_angle(axis_angle_to_rpy(VECTORS)), VECTORS, atol=1e-9)


def test_the_readings_differ_where_it_matters():
    numbers = np.array([0.4, 0.3, -0.2])
    first, second = rpy_to_matrix(numbers), axis_angle_to_matrix(numbers)
    apart = np.degrees(np.linalg.norm(matrix_to_axis_angle(first @ second.T)))
    assert apart == pytest.approx(4.2976, abs=1e-3)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 1.0, np.pi - 1e-9, np.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0, 0.8)])
def test_angles_at_the_ends(angle, axis):
    vector = angle * np.array(axis)
    matrix = axis_angle_to_matrix(vector)
    np.testing.assert_allclose(matrix, transform.Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(axis_angle_to_matrix(matrix_to_axis_angle(matrix)), matrix, atol=1e-12)
    assert np.linalg.norm(matrix_to_axis_angle(matrix)) == pytest.approx(angle, abs=1e-9)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_a_pitch_of_a_right_angle(pitch):
    matrix = rpy_to_matrix(np.array([0.3, pitch, 0.8]))
    np.testing.assert_allclose(rpy_to_matrix(matrix_to_rpy(matrix)), matrix, atol=1e-9)
