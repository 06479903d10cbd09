"""The SDEs of SiT, run from noise (t = 1) to data (t = 0): dx = (v - D(t) score) dt + sqrt(2 D(t)) dw.

Whatever D >= 0 is, the marginals are those of the ODE dx = v dt (Ma et al., SiT, arXiv 2401.08740); D decides how
much noise is put in, and taken out again, on the way. Names and formulas follow github.com/willisma/SiT (transport/),
turned to our t, where noise is at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core.flow import noise_from_velocity
from core.sampling.levels import Levels
from core.sampling.ode import Draw, State, Step, VelocityAt, add, between, euler_step

Diffusion = Callable[[float], float]

# Name -> D(t, norm). On the straight path sigma(t) is t, and so `sigma` and `linear` are one form. `sbdm`, the
# diffusion of score-based models, makes v - D score linear in x, and is infinite at t = 1.
DIFFUSION_FORMS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda t, norm: norm,
    "sbdm": lambda t, norm: norm * t / (1 - t),
    "sigma": lambda t, norm: norm * t,
    "linear": lambda t, norm: norm * t,
    "decreasing": lambda t, norm: 0.25 * (1 - norm * math.cos(math.pi * t)) ** 2,
    "increasing-decreasing": lambda t, norm: norm * math.sin(math.pi * t) ** 2,
}


def diffusion(form: str, norm: float) -> Diffusion:
    """D(t) of a form in DIFFUSION_FORMS."""
    return lambda t: DIFFUSION_FORMS[form](t, norm)


def euler_maruyama_step(d: Diffusion) -> Step:
    """One evaluation; the noise is added after the drift (SiT's "Euler", and REPA's sampler)."""

    def step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
        dt = between(t, after)
        return _add_noise(add(x, _drift(velocity_at, x, t, dt, d), dt), t, after, d, draw)

    return step


def sde_heun_step(d: Diffusion) -> Step:
    """Two evaluations; the noise is added first, then both ends of the step share the drift (SiT's "Heun")."""

    def step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
        dt = between(t, after)
        x = _add_noise(x, t, after, d, draw)
        first = _drift(velocity_at, x, t, dt, d)
        second = _drift(velocity_at, add(x, first, dt), after, dt, d)
        return add(x, tuple(0.5 * (a + b) for a, b in zip(first, second, strict=True)), dt)

    return step


def mean_step(d: Diffusion) -> Step:
    """The drift of Euler-Maruyama without its noise."""

    def step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
        dt = between(t, after)
        return add(x, _drift(velocity_at, x, t, dt, d), dt)

    return step


# How the last step reaches 0. Tweedie's formula gives the expected data, E[x0 | x_t]; on the straight path that is
# x_t - t v, which is the Euler step of the ODE. None: there is no such step, and every step has noise.
LAST_STEPS: dict[str, Callable[[Diffusion], Step] | None] = {
    "mean": mean_step,
    "tweedie": lambda d: euler_step,
    "euler": lambda d: euler_step,
    "none": None,
}


def _drift(velocity_at: VelocityAt, x: State, t: Levels, dt: Levels, d: Diffusion) -> State:
    """v - D score of the parts that move, where the score is -E[x1 | x_t] / t."""

    def drift(x: Tensor, v: Tensor, t: float, dt: float) -> Tensor:
        if not dt or not t:  # it stays, or it has landed, and what comes of it is not looked at
            return v
        time = torch.full((1, 1), t, dtype=x.dtype, device=x.device)
        return v + d(t) / t * noise_from_velocity(x, v, time)

    return tuple(map(drift, x, velocity_at(x, t), t, dt))


def _add_noise(x: State, t: Levels, after: Levels, d: Diffusion, draw: Draw) -> State:
    """Add noise to the parts that move."""

    def noisy(x: Tensor, w: Tensor, t: float, after: float) -> Tensor:
        return x if t == after else x + math.sqrt(2 * d(t) * (t - after)) * w.to(x)

    return tuple(map(noisy, x, draw(), t, after))
