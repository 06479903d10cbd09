"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0): Runge-Kutta steps on a grid, and adaptive dopri5.

The schemes are those of torchdiffeq, which SiT samples with; the fixed ones are a few lines each and need no package.
They see a state (one tensor per part), the level of each part, and a velocity; trunks, guidance and given tokens are
in sampler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from core.errors import ConfigError
from core.optional import need
from core.sampling.levels import Levels, LevelSchedule

MAX_STEPS = 10_000  # of dopri5 between two timesteps of the grid; torchdiffeq itself would never stop

State = tuple[Tensor, ...]
VelocityAt = Callable[[State, Levels], State]
Draw = Callable[[], State]  # unit normals in the shapes of the state; only the steps of an SDE call it
Step = Callable[[VelocityAt, State, Levels, Levels, Draw], State]  # velocity, state, its levels, those after, draw
# State, its levels, which parts move in this step -> velocity; those of other parts are not looked at.
MovingVelocity = Callable[[State, Levels, tuple[bool, ...]], State]
# Velocity, state, schedule, number of the step (from 0) -> unit normals; gives the state after every step.
Integrate = Callable[[MovingVelocity, State, LevelSchedule, Callable[[int], State]], Iterator[State]]


def on_grid(step: Step, last: Step | None = None) -> Integrate:
    """`step` from every row of the schedule to the next. Where there is a `last`, parts land by it.

    Where some parts land and others go on, both are taken, and each part goes by its own.
    """

    def integrate(
        velocity_at: MovingVelocity, x: State, schedule: LevelSchedule, draws: Callable[[int], State]
    ) -> Iterator[State]:
        def taken(take: Step, x: State, number: int) -> State:
            moving = schedule.moving(number)
            t, after = schedule.rows[number : number + 2]
            return take(lambda y, levels: velocity_at(y, levels, moving), x, t, after, partial(draws, number))

        for number in range(schedule.steps):
            landing = schedule.landing(number)
            if last is None or not any(landing):
                x = taken(step, x, number)
            elif landing == schedule.moving(number):
                x = taken(last, x, number)
            else:
                both = zip(landing, taken(last, x, number), taken(step, x, number), strict=True)
                x = tuple(landed if lands else on_way for lands, landed, on_way in both)
            yield x

    return integrate


def euler_step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
    """One evaluation, order 1."""
    return add(x, velocity_at(x, t), between(t, after))


def midpoint_step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
    """Two evaluations, order 2."""
    dt = between(t, after)
    half = tuple(d / 2 for d in dt)
    return add(x, velocity_at(add(x, velocity_at(x, t), half), _later(t, half)), dt)


def heun_step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
    """Two evaluations, order 2: the mean of the velocities at both ends (torchdiffeq's heun2)."""
    dt = between(t, after)
    first = velocity_at(x, t)
    second = velocity_at(add(x, first, dt), after)
    mean = tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
    return add(x, mean, dt)


def rk4_step(velocity_at: VelocityAt, x: State, t: Levels, after: Levels, draw: Draw) -> State:
    """Four evaluations, order 4: Kutta's 3/8 rule, which is torchdiffeq's rk4."""
    dt = between(t, after)
    third, two_thirds = tuple(d / 3 for d in dt), tuple(d * 2 / 3 for d in dt)
    k1 = velocity_at(x, t)
    k2 = velocity_at(add(x, k1, third), _later(t, third))
    k3 = velocity_at(add(x, add(k2, k1, -1 / 3), dt), _later(t, two_thirds))
    k4 = velocity_at(add(x, add(add(k1, k2, -1), k3, 1), dt), after)
    mean = tuple((a + 3 * (b + c) + d) / 8 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
    return add(x, mean, dt)


def between(t: Levels, after: Levels) -> Levels:
    """The change of each part's level in a step."""
    return tuple(b - a for a, b in zip(t, after, strict=True))


def _later(t: Levels, dt: Levels) -> Levels:
    return tuple(a + d for a, d in zip(t, dt, strict=True))


def dopri5(atol: float, rtol: float, land: bool = True) -> Integrate:
    """Dormand-Prince of order 5 through torchdiffeq; steps are chosen so that the root mean square of the estimated
    error over the whole state stays within atol + rtol |x|.

    The timesteps of the grid do not move the steps: states at them are interpolated. All parts have one level.

    Args:
        land: the last step ends at the last timestep. Otherwise, as SiT has it, it may reach far past it (velocities
            are asked for at negative timesteps) and the answer is interpolated, too.

    Raises:
        ConfigError: torchdiffeq is not installed, or no step is small enough for the tolerances.
    """

    def integrate(
        velocity_at: MovingVelocity, x: State, schedule: LevelSchedule, draws: Callable[[int], State]
    ) -> Iterator[State]:
        parts = len(schedule.lands)
        odeint = need("torchdiffeq", "solver: 'dopri5'", "All other solvers work").odeint
        timesteps = [min(row) for row in schedule.rows]  # absent parts stay at 1
        grid = torch.tensor(timesteps, dtype=torch.float64, device=x[0].device)
        try:
            path = odeint(
                lambda t, y: velocity_at(y, (float(t),) * parts, (True,) * parts),
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
def add(x: State, y: State, factor: Levels | float) -> State:
    """x + factor y, with one factor or one for each part. A part whose factor is 0 stays as it is."""
    factors = factor if isinstance(factor, tuple) else (factor,) * len(x)
    return tuple(a + f * b if f else a for a, b, f in zip(x, y, factors, strict=True))
