"""From noise to data: Euler and Heun on the flow ODE, and the SDE of the published samples.

Works with any trunk and any number of segments. Tokens marked `given` are conditioning: they stay at one small level
while the others are integrated around them (first frames, inpainting, an observation beside actions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ShapeError, nearest
from core.flow import interpolate, noise_from_velocity, shift_time
from core.keys import generator
from core.types import NoiseLevels, Segment, TokenBatch, map_tensors

# The published SDE stops its random steps at this level and goes to 0 in one step without noise.
LAST_SDE_STEP = 0.04

State = tuple[Tensor, ...]
VelocityAt = Callable[[State, float], State]


@dataclass
class SamplerConfig:
    """How to integrate from noise to data.

    Attributes:
        solver: euler, heun (two evaluations a step, second order), or sde.
        steps: number of solver steps, the last one of `sde` included.
        shift: alpha of the time shift; above 1, more of the steps are spent near noise.
        guidance: s in v = v_null + s (v_condition - v_null); 1 is no guidance, and costs none.
        guidance_low, guidance_high: guidance acts where low <= t <= high; elsewhere the null half is not evaluated.
        given_level: noise level at which the other tokens see the given ones; they are returned clean.
        exact: on a CPU, evaluate the trunk sample by sample, so that a sample has the same bytes in a batch of any
            size. Other devices evaluate whole batches always.
    """

    solver: str = "euler"
    steps: int = 50
    shift: float = 1.0
    guidance: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    given_level: float = 0.0
    exact: bool = True

    def problems(self) -> list[str]:
        found = []
        if self.solver not in SOLVERS:
            found.append(f"solver: {self.solver!r} is not one of {', '.join(SOLVERS)}.{nearest(self.solver, SOLVERS)}")
        least = 2 if self.solver == "sde" else 1
        if self.steps < least:
            found.append(f"steps: {self.steps} must be at least {least}")
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
        return found


def time_grid(steps: int, shift: float = 1.0, last_step: float | None = None) -> list[float]:
    """steps + 1 times from 1 (noise) down to 0 (data), in float64.

    Args:
        shift: alpha; evenly spaced times are moved by alpha t / (1 + (alpha - 1) t) (paper A.2).
        last_step: length of the last step; the others then share what is left of [0, 1]. None: as even as the rest.
    """
    if last_step is None:
        return [shift_time((steps - i) / steps, shift) for i in range(steps + 1)]
    times = time_grid(steps - 1, shift)
    return [last_step + (1 - last_step) * t for t in times] + [0.0]


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
    """Integrate the trunk's velocity from t = 1 to t = 0.

    Args:
        trunk: called as trunk(noisy, levels, batch); put into eval mode by the caller.
        batch: context, ids, padding and given tokens; of x0 only the given tokens are looked at.
        noise: (B, N, C) per segment, the state at t = 1. The state is float32, or float64 if the noise is.
        seed: of the SDE's default increments; not looked at otherwise.
        increments: step (from 0) -> unit normals (B, N, C) per segment; default `sde_increments(seed, batch)`.
        progress: called after every step with the number of finished steps and the state.

    Returns:
        (B, N, C) per segment: generated tokens, and the given ones as they are in x0.

    Raises:
        ConfigError: with all problems of the config.
        ShapeError: noise does not fit the batch, or random numbers are needed and the batch has no keys.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    _check_noise(noise, batch)
    state = tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in noise)
    clean = tuple(segment.x0.to(part.dtype) for segment, part in zip(batch.segments, state, strict=True))
    level = torch.full((1, 1), config.given_level, dtype=state[0].dtype, device=state[0].device)
    held = tuple(interpolate(x0, x1, level) for x0, x1 in zip(clean, state, strict=True))

    def velocity_at(x: State, t: float) -> State:
        return _velocity(trunk, batch, _with_given(batch, x, held), t, config)

    increments = increments or sde_increments(seed, batch)
    take_step = SOLVERS[config.solver]
    times = time_grid(config.steps, config.shift, LAST_SDE_STEP if config.solver == "sde" else None)
    for step in range(config.steps):
        state = take_step(velocity_at, state, times[step], times[step + 1], partial(increments, step))
        state = _with_given(batch, state, held)
        if progress is not None:
            progress(step + 1, state)
    return _with_given(batch, state, clean)


# A step takes the state from t to the smaller time `after`; `draw` gives the unit normals of an SDE step.
def _euler_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Callable[[], State]) -> State:
    return _move(x, velocity_at(x, t), after - t)


def _heun_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Callable[[], State]) -> State:
    first = velocity_at(x, t)
    second = velocity_at(_move(x, first, after - t), after)
    mean = tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
    return _move(x, mean, after - t)


def _sde_step(velocity_at: VelocityAt, x: State, t: float, after: float, draw: Callable[[], State]) -> State:
    """Euler-Maruyama for dx = (v - t score) dt + sqrt(2 t) dw, run from noise to data; the last step has no noise.

    -t score is the expected noise x1, hence the drift v + x1 without a division by t.
    """
    v = velocity_at(x, t)
    time = torch.full((1, 1), t, dtype=x[0].dtype, device=x[0].device)
    drift = tuple(a + noise_from_velocity(b, a, time) for a, b in zip(v, x, strict=True))
    x = _move(x, drift, after - t)
    if after == 0:
        return x
    deviation = (2 * t * (t - after)) ** 0.5
    return tuple(a + deviation * w.to(a) for a, w in zip(x, draw(), strict=True))


SOLVERS = {"euler": _euler_step, "heun": _heun_step, "sde": _sde_step}


# State updates are single multiplications and additions: each rounds alone, and so alike in a batch of any size.
def _move(x: State, v: State, dt: float) -> State:
    return tuple(a + dt * b for a, b in zip(x, v, strict=True))


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
    if not config.exact or x[0].device.type != "cpu" or batch.size == 1:
        return _guided(trunk, batch, x, t, config)
    # Matrix products of other sizes run other kernels with other rounding: one row per sample (the modulation) goes
    # through a matrix-vector kernel in a batch of one and through a matrix-matrix kernel in a larger one.
    parts = []
    for i in range(batch.size):
        parts.append(_guided(trunk, _one_sample(batch, i), tuple(part[i : i + 1].clone() for part in x), t, config))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _guided(trunk: nn.Module, batch: TokenBatch, x: State, t: float, config: SamplerConfig) -> State:
    dtypes = [part.dtype for part in x]
    if config.guidance == 1 or not config.guidance_low <= t <= config.guidance_high:
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
