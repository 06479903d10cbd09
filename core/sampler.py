"""From noise to data: a trunk, its guidance and its given tokens under any solver of core/solvers.py and core/sde.py.

Works with any trunk and any number of segments. Tokens marked `given` are conditioning: they stay at one small level
while the others are integrated around them (first frames, inpainting, an observation beside actions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ShapeError, nearest
from core.flow import interpolate, shift_time
from core.keys import generator
from core.sde import DIFFUSION_FORMS, LAST_STEPS, diffusion, euler_maruyama_step, sde_heun_step
from core.solvers import (
    Integrate,
    State,
    VelocityAt,
    dopri5,
    euler_step,
    heun_step,
    midpoint_step,
    on_grid,
    rk4_step,
)
from core.types import NoiseLevels, Segment, TokenBatch, map_tensors

# Of the SDE: the random steps end here. A step of 250 over [0, 1], whatever the number of steps (SiT, REPA, Self-Flow).
LAST_SDE_STEP = 0.04


@dataclass
class SamplerConfig:
    """How to integrate from noise to data.

    Attributes:
        solver: a name in SOLVERS. ODE: euler, midpoint, heun, rk4 (1, 2, 2 and 4 evaluations a step), and dopri5, which
            chooses its steps itself. SDE: sde (Euler-Maruyama) and sde_heun (2 evaluations a step).
        steps: number of solver steps, the last one of an SDE included; a grid of N points has N - 1. dopri5 only
            reports its state at these times.
        shift: alpha of the time shift; above 1, more of the steps are spent near noise.
        guidance: s in v = v_null + s (v_condition - v_null); 1 is no guidance, and costs none.
        guidance_low, guidance_high: guidance acts where low <= t <= high; elsewhere the null half is not evaluated.
        given_level: noise level at which the other tokens see the given ones; they are returned clean.
        exact: on a CPU, evaluate the trunk sample by sample, so that a sample has the same bytes in a batch of any
            size; dopri5 then chooses its steps for each sample, too. Without it, and on other devices, whole batches
            are evaluated, and the steps of dopri5 are those of the batch: a sample then depends on its neighbours,
            within the tolerances.
        start, end: first and last time, before the shift. The state at `start` is the noise, that at `end` the
            answer, with what noise is left in it (RAE: 0.001).
        correct_last: heun: correct the last step as well, or leave it an Euler step (EDM, arXiv 2206.00364,
            Algorithm 1, and REPA's sampler).
        atol, rtol: dopri5: tolerances of the error (defaults of SiT).
        land_on_end: dopri5: end the last step at `end`. Off as in SiT, where that step reaches far past the data and
            is interpolated back: the trunk is asked for levels below 0, and the error is larger.
        diffusion_form, diffusion_norm: SDE: the diffusion, a name in core.sde.DIFFUSION_FORMS, and its scale.
        last_step: SDE: how the last step reaches 0, a name in core.sde.LAST_STEPS.
        last_step_size: SDE: time at which the last step begins, after the shift.
    """

    solver: str = "euler"
    steps: int = 50
    shift: float = 1.0
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    given_level: float = 0.0
    exact: bool = True
    start: float = 1.0
    end: float = 0.0
    correct_last: bool = True
    atol: float = 1e-6
    rtol: float = 1e-3
    land_on_end: bool = True
    diffusion_form: str = "sigma"
    diffusion_norm: float = 1.0
    last_step: str = "mean"
    last_step_size: float = LAST_SDE_STEP

    def problems(self) -> list[str]:
        found = []
        if self.solver not in SOLVERS:
            found.append(f"solver: {self.solver!r} is not one of {', '.join(SOLVERS)}.{nearest(self.solver, SOLVERS)}")
        if self.steps < (2 if self._ends_in_one_step() else 1):
            found.append(f"steps: {self.steps} must be at least {2 if self._ends_in_one_step() else 1}")
        if not self.shift > 0:
            found.append(f"shift: {self.shift} must be above 0")
        if not self.guidance >= 0:
            found.append(f"guidance: {self.guidance} must not be negative")
        if not 0 <= self.guidance_low <= self.guidance_high <= 1:
            found.append(
                f"guidance_low, guidance_high: {self.guidance_low}, {self.guidance_high} must lie in [0, 1], in order"
            )
        if not 0 <= self.given_level < 1:
            found.append(f"given_level: {self.given_level} must lie in [0, 1)")
        if not 0 <= self.end < self.start <= 1:
            found.append(f"start, end: {self.start}, {self.end} must lie in [0, 1], the end below the start")
        for name in ("atol", "rtol"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: {getattr(self, name)} must be above 0")
        return found + self._unread() + self._sde_problems()

    def _ends_in_one_step(self) -> bool:
        return self.solver in ("sde", "sde_heun") and self.last_step != "none"

    def _unread(self) -> list[str]:
        """Settings of other solvers, away from their defaults."""
        found = []
        for name in sorted({name for solver in SOLVERS.values() for name in solver.reads}):
            value, default = getattr(self, name), getattr(SamplerConfig, name)
            if self.solver in SOLVERS and name not in SOLVERS[self.solver].reads and value != default:
                readers = " and ".join(other for other, solver in SOLVERS.items() if name in solver.reads)
                found.append(f"{name}: {value!r} is read by {readers}, not by {self.solver}; leave it at {default!r}")
        return found

    def _sde_problems(self) -> list[str]:
        found = []
        for name, table in (("diffusion_form", DIFFUSION_FORMS), ("last_step", LAST_STEPS)):
            value = getattr(self, name)
            if value not in table:
                found.append(f"{name}: {value!r} is not one of {', '.join(table)}.{nearest(value, table)}")
        if not self.diffusion_norm >= 0:
            found.append(f"diffusion_norm: {self.diffusion_norm} must not be negative")
        if not 0 < self.last_step_size < 1:
            found.append(f"last_step_size: {self.last_step_size} must lie between 0 and 1")
        if self.solver not in ("sde", "sde_heun"):
            return found
        if self.diffusion_form == "sbdm" and self.start == 1:
            found.append("start: 1.0 must be below 1 (0.999, say): diffusion_form sbdm is infinite at 1")
        if self._ends_in_one_step() and self.end != 0:
            found.append(f"end: {self.end} must be 0, where last_step {self.last_step} ends; or set last_step to none")
        if self._ends_in_one_step() and self.shift > 0 and self.last_step_size >= shift_time(self.start, self.shift):
            found.append(f"last_step_size: {self.last_step_size} must be below the start")
        if self.last_step == "none" and self.last_step_size != LAST_SDE_STEP:
            found.append(f"last_step_size: {self.last_step_size} is not read with last_step none; leave it at 0.04")
        if self.last_step == "none" and self.solver == "sde_heun" and self.end == 0:
            found.append(
                f"end: {self.end} must be above 0 (0.001, say): sde_heun with last_step none needs the score there"
            )
        return found

    def times(self) -> list[float]:
        """steps + 1 decreasing times, after the shift."""
        last_step = self.last_step_size if self._ends_in_one_step() else None
        return time_grid(self.steps, self.shift, last_step, self.start, self.end)


@dataclass(frozen=True)
class Solver:
    """
    Attributes:
        build: config -> the solver.
        reads: the settings that some solvers do not read, and this one does.
        adaptive: it chooses its own steps, from the state of all the samples that it is given.
    """

    build: Callable[[SamplerConfig], Integrate]
    reads: tuple[str, ...] = ()
    adaptive: bool = False


def _sde(config: SamplerConfig, make_step: Callable) -> Integrate:
    d, last = diffusion(config.diffusion_form, config.diffusion_norm), LAST_STEPS[config.last_step]
    return on_grid(make_step(d), last and last(d))


SDE_SETTINGS = ("diffusion_form", "diffusion_norm", "last_step", "last_step_size")
SOLVERS = {
    "euler": Solver(lambda config: on_grid(euler_step)),
    "midpoint": Solver(lambda config: on_grid(midpoint_step)),
    "heun": Solver(lambda config: on_grid(heun_step, None if config.correct_last else euler_step), ("correct_last",)),
    "rk4": Solver(lambda config: on_grid(rk4_step)),
    "dopri5": Solver(
        lambda config: dopri5(config.atol, config.rtol, config.land_on_end),
        ("atol", "rtol", "land_on_end"),
        adaptive=True,
    ),
    "sde": Solver(lambda config: _sde(config, euler_maruyama_step), SDE_SETTINGS),
    "sde_heun": Solver(lambda config: _sde(config, sde_heun_step), SDE_SETTINGS),
}


def time_grid(
    steps: int, shift: float = 1.0, last_step: float | None = None, start: float = 1.0, end: float = 0.0
) -> list[float]:
    """steps + 1 decreasing times, in float64; by default from 1 (noise) down to 0 (data).

    Args:
        shift: alpha; evenly spaced times are moved by alpha t / (1 + (alpha - 1) t) (paper A.2).
        last_step: length of the last step, which ends at 0; the others share the time above it. None: as even as the
            rest.
        start, end: the ends of the evenly spaced times, before the shift; `end` is for grids without a last step.
    """
    if last_step is None:
        return [shift_time(end + (start - end) * ((steps - i) / steps), shift) for i in range(steps + 1)]
    above = shift_time(start, shift) - last_step
    return [last_step + above * t for t in time_grid(steps - 1, shift)] + [0.0]


def initial_noise(seed: int, batch: TokenBatch) -> State:
    """One unit normal (B, N, C) float32 per segment; that of a sample depends on the seed and its key alone."""
    return _keyed_normals(batch, seed, "generate")


def sde_increments(seed: int, batch: TokenBatch) -> Callable[[int], State]:
    """step -> one unit normal (B, N, C) per segment, keyed like `initial_noise`; `sample` scales them."""
    return lambda step: _keyed_normals(batch, seed, "sde", step)


def _keyed_normals(batch: TokenBatch, seed: int, purpose: str, *more: int) -> State:
    if not batch.keys:
        raise ShapeError("TokenBatch.keys: empty; random numbers are drawn by the key of each sample")

    def draw(place: int, segment: Segment) -> Tensor:
        shape = segment.x0.shape[1:]
        names = [(seed, purpose, key, *more, place, segment.modality) for key in batch.keys]
        return torch.stack([torch.randn(shape, generator=generator(*name)) for name in names])

    return tuple(draw(place, segment) for place, segment in enumerate(batch.segments))


@torch.no_grad()
def sample(
    trunk: nn.Module,
    batch: TokenBatch,
    noise: State,
    config: SamplerConfig,
    seed: int = 0,
    increments: Callable[[int], State] | None = None,
    progress: Callable[[int, State], None] | None = None,
) -> State:
    """Integrate the trunk's velocity from noise to data.

    Args:
        trunk: called as trunk(noisy, levels, batch); put into eval mode by the caller.
        batch: context, ids, padding and given tokens; of x0 only the given tokens are looked at.
        noise: (B, N, C) per segment, the state at the start. The state is float32, or float64 if the noise is.
        seed: of the SDE's default increments; not looked at otherwise.
        increments: step (from 0) -> unit normals (B, N, C) per segment; default `sde_increments(seed, batch)`.
        progress: called after every step with the number of finished steps and the state; under dopri5 only when
            all is done, with the state at each time of the grid.

    Returns:
        (B, N, C) per segment: generated tokens, and the given ones as they are in x0.

    Raises:
        ConfigError: with all problems of the config; or dopri5 cannot run (no torchdiffeq, tolerances too small).
        ShapeError: noise does not fit the batch, or random numbers are needed and the batch has no keys.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    _check_noise(noise, batch)
    state = tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in noise)
    clean = tuple(segment.x0.to(part.dtype) for segment, part in zip(batch.segments, state, strict=True))
    level = torch.full((1, 1), config.given_level, dtype=state[0].dtype, device=state[0].device)
    held = tuple(interpolate(x0, x1, level) for x0, x1 in zip(clean, state, strict=True))

    solver = SOLVERS[config.solver]
    if solver.adaptive:
        times = config.times() if progress is not None else [config.times()[0], config.times()[-1]]
        states = _adaptive(trunk, batch, state, held, solver.build(config), times, config)
    else:
        draws = increments or sde_increments(seed, batch)
        states = solver.build(config)(_velocity_at(trunk, batch, held, config), state, config.times(), draws)
    for step, reached in enumerate(states, 1):
        state = _with_given(batch, reached, held)
        if progress is not None:
            progress(step, state)
    return _with_given(batch, state, clean)


def _velocity_at(trunk: nn.Module, batch: TokenBatch, held: State, config: SamplerConfig) -> VelocityAt:
    return lambda x, t: _velocity(trunk, batch, _with_given(batch, x, held), t, config)


def _adaptive(
    trunk: nn.Module,
    batch: TokenBatch,
    state: State,
    held: State,
    integrate: Integrate,
    times: list[float],
    config: SamplerConfig,
) -> Iterator[State]:
    """The states of a solver that chooses its steps: for each sample alone where the bytes shall not depend on others.

    It sees only the numbers that it has to integrate, in one row: given tokens and padding would dilute its error.
    """
    if _one_by_one(config, batch, state):
        runs = []
        for i in range(batch.size):
            own = [tuple(part[i : i + 1].clone() for part in parts) for parts in (state, held)]
            runs.append(_adaptive(trunk, _one_sample(batch, i), *own, integrate, times, config))
        yield from (
            tuple(torch.cat(parts) for parts in zip(*states, strict=True)) for states in zip(*runs, strict=True)
        )
        return
    free = [segment.counted()[..., None].expand_as(segment.x0) for segment in batch.segments]  # (B, N, C) each
    sizes = [int(mask.sum()) for mask in free]

    def pack(x: State) -> State:
        return (torch.cat([part[mask] for part, mask in zip(x, free, strict=True)]),)

    def unpack(row: State) -> State:
        parts = row[0].split(sizes)
        return tuple(part.masked_scatter(*pair) for part, *pair in zip(state, free, parts, strict=True))

    if sum(sizes) == 0:
        yield from [state] * (len(times) - 1)
        return
    velocity_at = _velocity_at(trunk, batch, held, config)
    rows = integrate(lambda row, t: pack(velocity_at(unpack(row), t)), pack(state), times, lambda step: ())
    yield from map(unpack, rows)


def _with_given(batch: TokenBatch, x: State, given: State) -> State:
    """`x`, with the given tokens of the batch taken from `given`."""
    return tuple(
        a if segment.given is None else torch.where(segment.given[..., None], b, a)
        for segment, a, b in zip(batch.segments, x, given, strict=True)
    )


def _check_noise(noise: State, batch: TokenBatch) -> None:
    wanted = [tuple(segment.x0.shape) for segment in batch.segments]
    seen = [tuple(part.shape) for part in noise]
    if seen != wanted:
        raise ShapeError(f"sample: noise: expected shapes {wanted}, got {seen}")


def _velocity(trunk: nn.Module, batch: TokenBatch, x: State, t: float, config: SamplerConfig) -> State:
    """Guided velocity (B, N, C) per segment, in the dtype of the state."""
    if not _one_by_one(config, batch, x):
        return _guided(trunk, batch, x, t, config)
    # Matrix products of other sizes run other kernels with other rounding: one row per sample (the modulation) goes
    # through a matrix-vector kernel in a batch of one and through a matrix-matrix kernel in a larger one.
    parts = []
    for i in range(batch.size):
        parts.append(_guided(trunk, _one_sample(batch, i), tuple(part[i : i + 1].clone() for part in x), t, config))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _one_by_one(config: SamplerConfig, batch: TokenBatch, x: State) -> bool:
    return config.exact and x[0].device.type == "cpu" and batch.size > 1


def _guided(trunk: nn.Module, batch: TokenBatch, x: State, t: float, config: SamplerConfig) -> State:
    dtypes = [part.dtype for part in x]
    inside = config.guidance_low <= max(t, 0.0) <= config.guidance_high  # dopri5 may look past the end
    if config.guidance == 1 or not inside:
        v = trunk(x, _levels(batch, t, config, dtypes[0]), batch).velocity
        return tuple(part.to(dtype) for part, dtype in zip(v, dtypes, strict=True))
    both = _null_and_condition(batch)
    twice = tuple(torch.cat([part, part]) for part in x)
    v = trunk(twice, _levels(both, t, config, dtypes[0]), both).velocity
    halves = [part.to(dtype).chunk(2) for part, dtype in zip(v, dtypes, strict=True)]
    return tuple(null + config.guidance * (condition - null) for null, condition in halves)


def _levels(batch: TokenBatch, t: float, config: SamplerConfig, dtype: torch.dtype) -> NoiseLevels:
    """Every token at t; given tokens at their own level."""
    device = batch.segments[0].x0.device
    if all(segment.given is None for segment in batch.segments):
        return NoiseLevels(torch.full((batch.size, 1), t, dtype=dtype, device=device))
    values = torch.tensor([t, config.given_level], dtype=dtype, device=device).expand(batch.size, -1)
    free = torch.zeros(batch.size, max(batch.lengths), dtype=torch.long, device=device)
    parts = [
        free[:, :length] if segment.given is None else segment.given.long()
        for segment, length in zip(batch.segments, batch.lengths, strict=True)
    ]
    return NoiseLevels(values, torch.cat(parts, dim=1))


def _one_sample(batch: TokenBatch, i: int) -> TokenBatch:
    """Sample i as a batch of one, in memory of its own: how a tensor is aligned can choose the kernel, too."""

    def row(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] < batch.size else tensor[i : i + 1].clone()  # ids may be shared

    segments, context = map_tensors(batch.segments, row), map_tensors(batch.context, row)
    return TokenBatch(segments, context, batch.keys[i : i + 1])


def _null_and_condition(batch: TokenBatch) -> TokenBatch:
    """(2B): every sample under the null condition, then every sample under its own."""

    def twice(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] < batch.size else torch.cat([tensor, tensor])

    context = map_tensors(batch.context, twice)
    dropped = torch.cat([batch.context.drop_all().dropped, batch.context.dropped])
    return TokenBatch(map_tensors(batch.segments, twice), replace(context, dropped=dropped), batch.keys * 2)
