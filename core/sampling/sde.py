"""The SDEs of SiT, run from noise (t = 1) to data (t = 0): dx = (v - D(t) score) dt + sqrt(2 D(t)) dw.

Whatever D >= 0 is, the marginals are those of the ODE dx = v dt (Ma et al., SiT, arXiv 2401.08740); D decides how
much noise is put in, and taken out again, on the way. Names and formulas follow github.com/willisma/SiT (transport/),
turned to our time, where noise is at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from core.flow import noise_from_velocity
from core.sampling.ode import Draw, State, Step, VelocityAt, add, euler_step

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

    def step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
        return _add_noise(add(x, _drift(velocity_at, x, t, d), after - t), t, after, d, draw)

    return step


def sde_heun_step(d: Diffusion) -> Step:
    """Two evaluations; the noise is added first, then both ends of the step share the drift (SiT's "Heun")."""

    def step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
        x = _add_noise(x, t, after, d, draw)
        first = _drift(velocity_at, x, t, d)
        second = _drift(velocity_at, add(x, first, after - t), after, d)
        return add(x, tuple(0.5 * (a + b) for a, b in zip(first, second, strict=True)), after - t)

    return step


def mean_step(d: Diffusion) -> Step:
    """The drift of Euler-Maruyama without its noise."""

    def step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
        return add(x, _drift(velocity_at, x, t, d), after - t)

    return step


# How the last step reaches 0. Tweedie's formula gives the expected data, E[x0 | x_t]; on the straight path that is
# x_t - t v, which is the Euler step of the ODE. None: there is no such step, and every step has noise.
LAST_STEPS: dict[str, Callable[[Diffusion], Step] | None] = {
    "mean": mean_step,
    "tweedie": lambda d: euler_step,
    "euler": lambda d: euler_step,
    "none": None,
}


def _drift(velocity_at: VelocityAt, x: State, t: float, d: Diffusion) -> State:
    """v - D score, where the score is -E[x1 | x_t] / t."""
    v = velocity_at(x, t)
    time = torch.full((1, 1), t, dtype=x[0].dtype, device=x[0].device)
    share = d(t) / t
    return tuple(b + share * noise_from_velocity(a, b, time) for a, b in zip(x, v, strict=True))


def _add_noise(x: State, t: float, after: float, d: Diffusion, draw: Draw) -> State:
    deviation = math.sqrt(2 * d(t) * (t - after))
    return tuple(a + deviation * w.to(a) for a, w in zip(x, draw(), strict=True))
