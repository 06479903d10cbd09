"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0): Runge-Kutta steps on a grid, and adaptive dopri5.

The schemes are those of torchdiffeq, which SiT samples with; the fixed ones are a few lines each and need no package.
They see a state (one tensor per segment) and a velocity; trunks, guidance and given tokens are in sampler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from core.errors import ConfigError
from core.optional import need

MAX_STEPS = 10_000  # of dopri5 between two times of the grid; torchdiffeq itself would go on for ever

State = tuple[Tensor, ...]
VelocityAt = Callable[[State, float], State]
Draw = Callable[[], State]  # unit normals in the shapes of the state; only the steps of an SDE call it
Step = Callable[[VelocityAt, State, float, float, Draw], State]  # velocity, state at t, t, the smaller time after, draw
# Velocity, state, decreasing times, number of the step (from 0) -> unit normals; gives the state at every later time.
Integrate = Callable[[VelocityAt, State, list[float], Callable[[int], State]], Iterator[State]]


def on_grid(step: Step, last: Step | None = None) -> Integrate:
    """`step` from every time to the next; the last time is reached by `last`, where there is one."""

    def integrate(
        velocity_at: VelocityAt, x: State, timesteps: list[float], draws: Callable[[int], State]
    ) -> Iterator[State]:
        for number, (t, after) in enumerate(pairwise(timesteps)):
            take = last if last is not None and number == len(timesteps) - 2 else step
            x = take(velocity_at, x, t, after, partial(draws, number))
            yield x

    return integrate


def euler_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
    """One evaluation, order 1."""
    return add(x, velocity_at(x, t), after - t)


def midpoint_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
    """Two evaluations, order 2."""
    half = (after - t) / 2
    return add(x, velocity_at(add(x, velocity_at(x, t), half), t + half), after - t)


def heun_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
    """Two evaluations, order 2: the mean of the velocities at both ends (torchdiffeq's heun2)."""
    first = velocity_at(x, t)
    second = velocity_at(add(x, first, after - t), after)
    mean = tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
    return add(x, mean, after - t)


def rk4_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Draw) -> State:
    """Four evaluations, order 4: Kutta's 3/8 rule, which is torchdiffeq's rk4."""
    dt = after - t
    k1 = velocity_at(x, t)
    k2 = velocity_at(add(x, k1, dt / 3), t + dt / 3)
    k3 = velocity_at(add(x, add(k2, k1, -1 / 3), dt), t + dt * 2 / 3)
    k4 = velocity_at(add(x, add(add(k1, k2, -1), k3, 1), dt), after)
    mean = tuple((a + 3 * (b + c) + d) / 8 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return add(x, mean, dt)


def dopri5(atol: float, rtol: float, land: bool = True) -> Integrate:
    """Dormand-Prince of order 5 through torchdiffeq; steps are chosen so that the root mean square of the estimated
    error over the whole state stays within atol + rtol |x|.

    The times of the grid do not move the steps: states at them are interpolated.

    Args:
        land: the last step ends at the last time. Otherwise, as SiT has it, it may reach far past it (velocities are
            asked for at negative times) and the answer is interpolated, too.

    Raises:
        ConfigError: torchdiffeq is not installed, or no step is small enough for the tolerances.
    """

    def integrate(
        velocity_at: VelocityAt, x: State, timesteps: list[float], draws: Callable[[int], State]
    ) -> Iterator[State]:
        odeint = need("torchdiffeq", "solver: 'dopri5'", "All other solvers work").odeint
        grid = torch.tensor(timesteps, dtype=torch.float64, device=x[0].device)
        try:
            path = odeint(
                lambda t, y: velocity_at(y, float(t)),
                x,
                grid,
                method="dopri5",
                atol=atol,
                rtol=rtol,
                options={"max_num_steps": MAX_STEPS} | ({"step_t": grid[-1:]} if land else {}),
            )
        except (
            AssertionError
        ) as error:  # torchdiffeq's checks: too many steps, one of no length, a state that is not finite
            raise ConfigError(
                f"solver: 'dopri5' finds no step that keeps to atol {atol}, rtol {rtol} in {x[0].dtype}: set them "
                "higher; if that does not help, the velocity is not finite"
            ) from error
        yield from zip(*(part[1:] for part in path), strict=True)

    return integrate


# Updates are single multiplications and additions: each rounds alone, and so alike in a batch of any size.
def add(x: State, y: State, factor: float) -> State:
    """x + factor y."""
    return tuple(a + factor * b for a, b in zip(x, y, strict=True))
