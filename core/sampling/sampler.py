"""From noise to data: a trunk, its guidance and its given tokens under any solver of core/sampling/config.py.

Works with any trunk and any number of segments, each of which may have levels of its own (core/sampling/parts.py).
Tokens in `conditioning_mask` stay at one small level while the others are integrated around them (first frames,
inpainting, an observation beside actions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ShapeError
from core.flow import data_from_velocity, interpolate
from core.sampling.config import LAST_SDE_STEP, SOLVERS, SamplerConfig, time_grid
from core.sampling.invariant import each_sample
from core.sampling.levels import Levels, LevelSchedule
from core.sampling.noise import keyed_normals
from core.sampling.ode import Integrate, MovingVelocity, State
from core.sampling.plan import Plan, make_plan
from core.types import Context, TokenBatch, join_contexts, map_tensors

__all__ = ["LAST_SDE_STEP", "SOLVERS", "SamplerConfig", "initial_noise", "sample", "sde_increments", "time_grid"]


def initial_noise(seed: int, batch: TokenBatch) -> State:
    """One unit normal (B, N, C) float32 per segment; that of a sample depends on the seed and its key alone."""
    return keyed_normals(batch, seed, "generate")


def sde_increments(seed: int, batch: TokenBatch) -> Callable[[int], State]:
    """step -> one unit normal (B, N, C) per segment, keyed like `initial_noise`; `sample` scales them."""
    return lambda step: keyed_normals(batch, seed, "sde", step)


@torch.no_grad()
def sample(
    trunk: nn.Module,
    batch: TokenBatch,
    noise: State,
    config: SamplerConfig,
    seed: int = 0,
    increments: Callable[[int], State] | None = None,
    progress: Callable[[int, State], None] | None = None,
    null: Context | None = None,
) -> State:
    """Integrate the trunk's velocity from noise to data.

    Args:
        trunk: called as trunk(noisy, levels, batch); put into eval mode by the caller.
        batch: context, ids, padding and given tokens; of x0 only the given tokens are looked at.
        noise: (B, N, C) per segment, the state at the start. The state is float32, or float64 if the noise is.
        seed: of the SDE's default increments; not looked at otherwise.
        increments: step (from 0) -> unit normals (B, N, C) per segment; default `sde_increments(seed, batch)`.
        progress: called after every step with the number of finished steps and the state of the parts that are not
            omitted; under dopri5 only when all is done, with the state at each timestep of the grid.
        null: what guidance leads away from, in place of the null condition: a negative prompt for each sample.

    Returns:
        (B, N, C) per segment: generated tokens, and the given ones as they are in x0. Of absent and omitted parts their
        noise.

    Raises:
        ConfigError: with all problems of the config, and of its parts for this batch; or dopri5 cannot run (no
            torchdiffeq, tolerances too small).
        ShapeError: noise or `null` does not fit the batch, or random numbers are needed and the batch has no keys.
    """
    if problems := config.problems():
        raise ConfigError(problems)
    config = config.at(sum(batch.lengths))
    if problems := config.problems():
        raise ConfigError(problems)
    _check_noise(noise, batch)
    if null is not None and null.dropped.shape[0] != batch.size:
        raise ShapeError(f"sample: null: {null.dropped.shape[0]} contexts for {batch.size} samples")
    state = tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in noise)
    plan = make_plan(config, batch)
    if config.batch_invariant and state[0].device.type == "cpu":
        trunk = each_sample(trunk)
    drawn = increments or sde_increments(seed, batch)
    made = _run(trunk, plan, state, drawn, progress, null)
    found = dict(zip(plan.kept, made, strict=True))
    return tuple(found.get(place, part) for place, part in enumerate(state))


def _run(
    trunk: nn.Module,
    plan: Plan,
    noise: State,
    increments: Callable[[int], State],
    progress: Callable[[int, State], None] | None,
    null: Context | None,
) -> State:
    """The parts that are not omitted, from their noise."""
    batch, config, state = plan.batch, plan.config, plan.pick(noise)
    clean = tuple(segment.x0.to(part.dtype) for segment, part in zip(batch.segments, state, strict=True))
    clean = tuple(x1 if part.absent else x0 for x0, x1, part in zip(clean, state, plan.parts, strict=True))
    held = tuple(
        interpolate(x0, x1, torch.full((1, 1), part.conditioning_noise, dtype=x1.dtype, device=x1.device))
        for x0, x1, part in zip(clean, state, plan.parts, strict=True)
    )
    guided = Guided(batch, batch.context.drop_all() if null is None else null)

    solver = SOLVERS[config.solver]
    if solver.adaptive:
        schedule = plan.schedule if progress is not None else plan.schedule.ends()
        states = _adaptive(trunk, guided, state, held, solver.build(config), schedule, plan)
    else:
        velocity_at = _velocity_at(trunk, guided, held, plan)
        states = solver.build(config)(velocity_at, state, plan.schedule, lambda step: plan.pick(increments(step)))
    for step, reached in enumerate(states, 1):
        state = _with_conditioning(batch, reached, held)
        if progress is not None:
            progress(step, state)
    if any(part.tweedie for part in plan.parts):
        state = _tweedie(trunk, guided, state, held, plan)
    return _with_conditioning(batch, state, clean)


def _tweedie(trunk: nn.Module, guided: Guided, state: State, held: State, plan: Plan) -> State:
    """The expected data of parts that stopped early, given where all parts are now."""
    levels, wanted = plan.schedule.rows[-1], tuple(part.tweedie for part in plan.parts)
    v = _velocity_at(trunk, guided, held, plan)(state, levels, wanted)
    times = [torch.full((1, 1), t, dtype=x.dtype, device=x.device) for x, t in zip(state, levels, strict=True)]
    return tuple(
        data_from_velocity(x, u, t) if part.tweedie else x
        for x, u, t, part in zip(state, v, times, plan.parts, strict=True)
    )


@dataclass(frozen=True)
class Guided:
    """Samples, and for each of them the context that guidance leads away from."""

    batch: TokenBatch
    null: Context

    def one(self, i: int) -> Guided:
        """Sample i as a batch of one, in memory of its own: how a tensor is aligned can choose the kernel, too."""

        def row(tensor: Tensor) -> Tensor:
            return tensor if tensor.shape[0] < self.batch.size else tensor[i : i + 1].clone()  # ids may be shared

        segments = map_tensors(self.batch.segments, row)
        context, null = map_tensors((self.batch.context, self.null), row)
        return Guided(TokenBatch(segments, context, self.batch.keys[i : i + 1]), null)

    def both(self) -> TokenBatch:
        """(2B): every sample under the null context, then every sample under its own."""

        def twice(tensor: Tensor) -> Tensor:
            return tensor if tensor.shape[0] < self.batch.size else torch.cat([tensor, tensor])

        context = join_contexts(self.null, self.batch.context)
        return TokenBatch(map_tensors(self.batch.segments, twice), context, self.batch.keys * 2)


def _velocity_at(trunk: nn.Module, guided: Guided, held: State, plan: Plan) -> MovingVelocity:
    return lambda x, t, moving: _velocity(trunk, guided, _with_conditioning(guided.batch, x, held), t, moving, plan)


def _adaptive(
    trunk: nn.Module,
    guided: Guided,
    state: State,
    held: State,
    integrate: Integrate,
    schedule: LevelSchedule,
    plan: Plan,
) -> Iterator[State]:
    """The states of a solver that chooses its steps: for each sample alone where the bytes shall not depend on others.

    It sees only the numbers that it has to integrate, in one row: given tokens and padding would dilute its error.
    """
    batch = guided.batch
    if plan.config.batch_invariant and state[0].device.type == "cpu" and batch.size > 1:
        runs = []
        for i in range(batch.size):
            own, own_held = (tuple(part[i : i + 1].clone() for part in parts) for parts in (state, held))
            runs.append(_adaptive(trunk, guided.one(i), own, own_held, integrate, schedule, plan))
        yield from (
            tuple(torch.cat(parts) for parts in zip(*states, strict=True)) for states in zip(*runs, strict=True)
        )
        return
    free = [segment.loss_mask()[..., None].expand_as(segment.x0) for segment in batch.segments]  # (B, N, C) each
    sizes = [int(mask.sum()) for mask in free]

    def pack(x: State) -> State:
        return (torch.cat([part[mask] for part, mask in zip(x, free, strict=True)]),)

    def unpack(row: State) -> State:
        numbers = row[0].split(sizes)
        return tuple(part.masked_scatter(mask, new) for part, mask, new in zip(state, free, numbers, strict=True))

    if sum(sizes) == 0:
        yield from [state] * schedule.steps
        return
    velocity_at = _velocity_at(trunk, guided, held, plan)
    rows = integrate(
        lambda row, t, moving: pack(velocity_at(unpack(row), t, moving)), pack(state), schedule, lambda step: ()
    )
    yield from map(unpack, rows)


def _with_conditioning(batch: TokenBatch, x: State, clean: State) -> State:
    """`x`, with the conditioning tokens of the batch taken from `clean`."""
    return tuple(
        a if segment.conditioning_mask is None else torch.where(segment.conditioning_mask[..., None], b, a)
        for segment, a, b in zip(batch.segments, x, clean, strict=True)
    )


def _check_noise(noise: State, batch: TokenBatch) -> None:
    wanted = [tuple(segment.x0.shape) for segment in batch.segments]
    seen = [tuple(part.shape) for part in noise]
    if seen != wanted:
        raise ShapeError(f"sample: noise: expected shapes {wanted}, got {seen}")


def _velocity(trunk: nn.Module, guided: Guided, x: State, t: Levels, moving: tuple[bool, ...], plan: Plan) -> State:
    """Guided velocity (B, N, C) per segment, in the dtype of the state."""
    dtypes = [part.dtype for part in x]
    # Guidance costs the null half, so it is not asked for a part whose velocity nobody looks at.
    scales = [part.scale(level) if moves else 1.0 for part, level, moves in zip(plan.parts, t, moving, strict=True)]
    if all(scale == 1 for scale in scales):
        v = trunk(x, plan.levels(guided.batch, t, dtypes[0]), guided.batch).velocity
        return tuple(part.to(dtype) for part, dtype in zip(v, dtypes, strict=True))
    both = guided.both()
    twice = tuple(torch.cat([part, part]) for part in x)
    v = trunk(twice, plan.levels(both, t, dtypes[0]), both).velocity
    halves = [part.to(dtype).chunk(2) for part, dtype in zip(v, dtypes, strict=True)]
    return tuple(
        condition if scale == 1 else null + scale * (condition - null)
        for (null, condition), scale in zip(halves, scales, strict=True)
    )
