"""The path's identities, in float64."""

import torch

from core.flow import (
    data_from_velocity,
    interpolate,
    noise_from_velocity,
    score_from_velocity,
    shift_time,
    velocity,
)

X0, X1 = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.98 + 0.01


def test_ends_of_the_path_are_data_at_0_and_noise_at_1():
    assert torch.equal(interpolate(X0, X1, torch.zeros_like(T)), X0)
    torch.testing.assert_close(interpolate(X0, X1, torch.ones_like(T)), X1, atol=1e-15, rtol=0)


def test_velocity_is_the_derivative_of_the_path():
    h = 1e-6
    slope = (interpolate(X0, X1, T + h) - interpolate(X0, X1, T - h)) / (2 * h)
    torch.testing.assert_close(velocity(X0, X1), slope, atol=1e-8, rtol=0)


def test_data_and_noise_come_back_from_state_and_velocity():
    x_t, v = interpolate(X0, X1, T), velocity(X0, X1)
    torch.testing.assert_close(data_from_velocity(x_t, v, T), X0, atol=1e-14, rtol=0)
    torch.testing.assert_close(noise_from_velocity(x_t, v, T), X1, atol=1e-14, rtol=0)


def test_score_of_gaussian_data():
    """x0 ~ N(0, s^2): p_t is N(0, (1-t)^2 s^2 + t^2) and E[v | x] is linear in x."""
    s, x = 0.5, X0
    variance = (1 - T) ** 2 * s**2 + T**2
    v = ((T - (1 - T) * s**2) / variance)[..., None] * x
    torch.testing.assert_close(score_from_velocity(x, v, T), -x / variance[..., None], atol=1e-12, rtol=0)


def test_shift_fixes_the_ends_and_inverts_by_its_reciprocal():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_time(t, 6.93)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()
    torch.testing.assert_close(shift_time(shifted, 1 / 6.93), t, atol=1e-14, rtol=0)
