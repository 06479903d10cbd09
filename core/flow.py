"""The straight path between data and noise, and what follows from it.

t = 0 is data, t = 1 is noise, x_t = (1 - t) x0 + t x1, v = x1 - x0 (arXiv 2603.06507, Eq. 1-2). No other file
writes these formulas. All functions broadcast a level t of shape (B, L) or (B, 1) over the channels.
"""

from __future__ import annotations

from torch import Tensor


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """(B, L, C) tokens, each at its own level t (B, L)."""
    return x0 + (x1 - x0) * t[..., None]


def velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """dx/dt along the path: noise minus data."""
    return x1 - x0


def data_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t - t v."""
    return x_t - t[..., None] * v


def noise_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x1 = x_t + (1 - t) v."""
    return x_t + (1 - t[..., None]) * v


def score_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(x) = -E[x1 | x_t] / t, for t > 0."""
    return -noise_from_velocity(x_t, v, t) / t[..., None]


def shift_time(t: Tensor, alpha: float) -> Tensor:
    """alpha t / (1 + (alpha - 1) t): alpha > 1 moves mass toward noise (paper A.2)."""
    return alpha * t / (1 + (alpha - 1) * t)


def shift_number(t: float, alpha: float) -> float:
    """`shift_time` of one number in [0, 1], in a form that keeps 0 and 1 and stays between them for every alpha > 0.

    The other form rounds 1 to 1.0000000000000002 for some alpha. It stays for the timesteps of training, which have
    to be the same bits when a run resumes.
    """
    moved = alpha * t
    return moved / ((1 - t) + moved)
