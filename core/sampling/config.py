"""The sampler's settings, the table of solvers that they choose from, and the grid of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from core.errors import nearest, not_finite
from core.flow import shift_number
from core.sampling.ode import Integrate, Step, dopri5, euler_step, heun_step, midpoint_step, on_grid, rk4_step
from core.sampling.parts import PartSampling, waiting_problems
from core.sampling.sde import DIFFUSION_FORMS, LAST_STEPS, Diffusion, diffusion, euler_maruyama_step, sde_heun_step

# Of the SDE: the random steps end here. A step of 250 over [0, 1], whatever the number of steps (SiT, REPA, Self-Flow).
LAST_SDE_STEP = 0.04

# Published scales stay below 30. Far above them float32 has no room for the difference that is scaled.
MOST_CFG_SCALE = MOST_DIFFUSION = 1000.0
MOST_STEPS = 100_000


@dataclass
class SamplerConfig:
    """How to integrate from noise to data.

    Attributes:
        solver: a name in SOLVERS. ODE: euler, midpoint, heun, rk4 (1, 2, 2 and 4 evaluations a step), and dopri5, which
            chooses its steps itself. SDE: sde (Euler-Maruyama) and sde_heun (2 evaluations a step).
        steps: number of solver steps, the last one of an SDE included; a grid of N points has N - 1. dopri5 only
            reports its state at these times.
        shift: alpha of the time shift; above 1, more of the steps are spent near noise.
        cfg_scale: s in v = v_null + s (v_condition - v_null), at most 1000; 1 is no guidance, and costs none.
        cfg_interval: guidance acts where low <= t <= high (arXiv 2404.07724); elsewhere the null half is not evaluated.
        conditioning_noise: noise level at which the other tokens see the given ones; they are returned clean.
        batch_invariant: on a CPU, evaluate the trunk sample by sample, so that a sample has the same bytes in a batch
            of any size; dopri5 then chooses its steps for each sample, too. Without it, and on other devices, whole
            batches are evaluated, and the steps of dopri5 are those of the batch: a sample then depends on its
            neighbours, within the tolerances.
        start, end: first and last time, before the shift. The state at `start` is the noise, that at `end` the
            answer, with what noise is left in it (RAE: 0.001).
        correct_last: heun: correct the last step as well, or leave it an Euler step (EDM, arXiv 2206.00364,
            Algorithm 1, and REPA's sampler).
        atol, rtol: dopri5: tolerances of the error (defaults of SiT).
        land_on_end: dopri5: end the last step at `end`. Off as in SiT, where that step reaches far past the data and
            is interpolated back: the trunk is asked for levels below 0, and the error is larger.
        diffusion_form, diffusion_norm: SDE: the diffusion, a name in core.sampling.sde.DIFFUSION_FORMS, and its scale.
        last_step: SDE: how the last step reaches 0, a name in core.sampling.sde.LAST_STEPS.
        last_step_size: SDE: time at which the last step begins, after the shift.
        parts: name of a part -> what it does differently from the others.
    """

    solver: str = "euler"
    steps: int = 50
    shift: float = 1.0
    cfg_scale: float = 1.0
    cfg_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    conditioning_noise: float = 0.0
    batch_invariant: bool = True
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
    parts: dict[str, PartSampling] = field(default_factory=dict)

    def problems(self) -> list[str]:
        if found := not_finite(self):
            return found
        if self.solver not in SOLVERS:
            found.append(f"solver: {self.solver!r} is not one of {', '.join(SOLVERS)}.{nearest(self.solver, SOLVERS)}")
        least = 2 if self._ends_in_one_step() else 1
        if self.steps < least:
            found.append(f"steps: {self.steps} must be at least {least}")
        if self.steps > MOST_STEPS:
            found.append(f"steps: {self.steps} must be at most {MOST_STEPS:,}")
        if not self.shift > 0:
            found.append(f"shift: {self.shift} must be above 0")
        found += _out_of_range("cfg_scale", self.cfg_scale, MOST_CFG_SCALE)
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            found.append(f"cfg_interval: {self.cfg_interval} must be two times in [0, 1], in order")
        if not 0 <= self.conditioning_noise < 1:
            found.append(f"conditioning_noise: {self.conditioning_noise} must lie in [0, 1)")
        if not 0 <= self.end < self.start <= 1:
            found.append(f"start, end: {self.start}, {self.end} must lie in [0, 1], the end below the start")
        for name in ("atol", "rtol"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: {getattr(self, name)} must be above 0")
        found += self._unread() + self._sde_problems()
        return found or self._grid_problems() or self._part_problems()

    def _ends_in_one_step(self) -> bool:
        return self.solver in ("sde", "sde_heun") and self.last_step != "none"

    def _grid_problems(self) -> list[str]:
        """Of a grid whose settings are in range, each by itself."""
        if all(t > after for t, after in pairwise(self.timesteps())):
            return []
        return [
            f"shift: {self.shift} puts several of the {self.steps} steps at one time; bring it nearer to 1, or move "
            "start and end apart"
        ]

    def _part_problems(self) -> list[str]:
        """Of parts, where the settings for all of them are right."""
        found = waiting_problems(self.parts)
        for name, part in self.parts.items():
            lines = part.problems() or self.of_part(part).problems()
            if part.stop_at and not lines:
                first, *_, last = self.of_part(part).timesteps()
                if not last < part.stop_at < first:
                    lines.append(
                        f"stop_at: {part.stop_at} must lie between the end and the start, {last:g} and {first:g}"
                    )
            if part.movement() and self.solver in SOLVERS and SOLVERS[self.solver].adaptive:
                lines.append(
                    f"{', '.join(part.movement())}: not with {self.solver}, which chooses its steps for all parts at "
                    "once; use a solver with a fixed grid, such as euler"
                )
            found += [f"parts.{name}.{line}" for line in lines]
        return found

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
        found += _out_of_range("diffusion_norm", self.diffusion_norm, MOST_DIFFUSION)
        if not 0 < self.last_step_size < 1:
            found.append(f"last_step_size: {self.last_step_size} must lie between 0 and 1")
        if self.solver not in ("sde", "sde_heun"):
            return found
        if self.diffusion_form == "sbdm" and self.start == 1:
            found.append("start: 1.0 must be below 1 (0.999, say): diffusion_form sbdm is infinite at 1")
        if self._ends_in_one_step() and self.end != 0:
            found.append(f"end: {self.end} must be 0, where last_step {self.last_step} ends; or set last_step to none")
        if self._ends_in_one_step() and self.shift > 0 and self.last_step_size >= shift_number(self.start, self.shift):
            found.append(f"last_step_size: {self.last_step_size} must be below the start")
        if self.last_step == "none" and self.last_step_size != LAST_SDE_STEP:
            found.append(f"last_step_size: {self.last_step_size} is not read with last_step none; leave it at 0.04")
        if self.last_step == "none" and self.solver == "sde_heun" and self.end == 0:
            found.append(
                f"end: {self.end} must be above 0 (0.001, say): sde_heun with last_step none needs the score there"
            )
        return found

    def for_solver(self, solver: str) -> SamplerConfig:
        """With another solver, and with settings that it does not read at their defaults."""
        unread = [name for other in SOLVERS.values() for name in other.reads if name not in SOLVERS[solver].reads]
        return replace(self, solver=solver, **{name: getattr(SamplerConfig, name) for name in unread})

    def timesteps(self) -> list[float]:
        """steps + 1 decreasing times, after the shift."""
        last_step = self.last_step_size if self._ends_in_one_step() else None
        return time_grid(self.steps, self.shift, last_step, self.start, self.end)

    def of_part(self, part: PartSampling) -> SamplerConfig:
        """The settings of one part, as if it was alone; where it ends is left to `path`."""
        return replace(self, parts={}, **part.own())

    def path(self, part: PartSampling) -> list[float]:
        """The levels of a part that has the run to itself."""
        own = self.of_part(part)
        if not part.stop_at:
            return own.timesteps()
        if part.steps is None:
            return [max(t, part.stop_at) for t in own.timesteps()]
        end = shift_number(part.stop_at, 1 / own.shift)
        return [*time_grid(part.steps, own.shift, None, own.start, end)[:-1], part.stop_at]

    def guidance(self) -> float:
        """The scale that is farthest from 1, of all parts; 1 is no guidance of any."""
        own = [part.cfg_scale for part in self.parts.values() if part.cfg_scale is not None]
        return max((self.cfg_scale, *own), key=lambda scale: abs(scale - 1))


def _out_of_range(name: str, value: float, most: float) -> list[str]:
    if value < 0:
        return [f"{name}: {value} must not be negative"]
    return [f"{name}: {value} must be at most {most:g}"] if value > most else []


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


def _sde(config: SamplerConfig, make_step: Callable[[Diffusion], Step]) -> Integrate:
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

    The first and the last one are the ends themselves, without a rounding: guidance and diffusions look at them.

    Args:
        shift: alpha; evenly spaced times are moved by alpha t / (1 + (alpha - 1) t) (paper A.2).
        last_step: length of the last step, which ends at 0; the others share the time above it. None: as even as the
            rest.
        start, end: the ends of the evenly spaced times, before the shift; `end` is for grids without a last step.
    """
    if last_step is None:
        between = [end + (start - end) * ((steps - i) / steps) for i in range(1, steps)]
        return [shift_number(t, shift) for t in (start, *between, end)]
    first = shift_number(start, shift)
    return [first, *(last_step + (first - last_step) * t for t in time_grid(steps - 1, shift)[1:]), 0.0]
