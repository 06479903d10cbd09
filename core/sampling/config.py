"""The sampler's settings, one dataclass for each solver, and the grid of timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

from core.errors import ConfigError, choose, nearest, not_finite
from core.flow import shift_number
from core.sampling.ode import Integrate, Step, dopri5, euler_step, heun_step, midpoint_step, on_grid, rk4_step
from core.sampling.parts import PartSampling, waiting_problems
from core.sampling.sde import DIFFUSION_FORMS, LAST_STEPS, Diffusion, diffusion, euler_maruyama_step, sde_heun_step
from core.shift import FIXED, flux2_shift, flux_shift, sd3_shift, shift_problems

# Of the SDE: the random steps end here. A step of 250 over [0, 1], whatever the number of steps (SiT, REPA, Self-Flow).
LAST_SDE_STEP = 0.04

# Published scales stay below 30. Far above them float32 has no room for the difference that is scaled.
MOST_CFG_SCALE = MOST_DIFFUSION = 1000.0
MOST_STEPS = 100_000
SHIFT_RULES = (FIXED, "sd3", "flux", "flux2")


@dataclass
class SamplerConfig:
    """How to integrate from noise to data: what all solvers have, and Euler's, which has nothing else.

    `SamplerConfig("heun", correct_last=False)` makes the dataclass of that solver, a row of SOLVERS, and raises
    ConfigError for a solver that does not exist.

    Attributes:
        solver: a name in SOLVERS. ODE: euler, midpoint, heun, rk4 (1, 2, 2 and 4 evaluations a step), and dopri5, which
            chooses its steps itself. SDE: sde (Euler-Maruyama) and sde_heun (2 evaluations a step).
        steps: number of solver steps, the last one of an SDE included; a grid of N points has N - 1. dopri5 only
            reports its state at these timesteps.
        shift: alpha of the timestep shift; above 1, more of the steps are spent near noise.
        shift_rule: fixed (alpha is `shift`), or by the tokens of a sample: sd3 (`shift` holds for `shift_tokens` and
            grows with the root of their number), flux, or flux2 (by the steps too); see core/shift.py. The shift of a
            part is fixed.
        shift_tokens: tokens of a sample at which sd3 has `shift`.
        cfg_scale: s in v = v_null + s (v_condition - v_null), at most 1000; 1 is no guidance, and costs none.
        cfg_interval: guidance acts where low <= t <= high (arXiv 2404.07724); elsewhere the null half is not evaluated.
        conditioning_noise: noise level at which the other tokens see the given ones; they are returned clean.
        batch_invariant: on a CPU, give a sample the same bytes in a batch of any size (core/sampling/invariant.py);
            dopri5 then chooses its steps for each sample. Without it, and on other devices, the steps of dopri5 are
            those of the batch, and a sample depends on its neighbors, within the tolerances.
        start, end: first and last timestep, before the shift. The state at `start` is the noise, that at `end` the
            answer, with what noise is left in it (RAE: 0.001).
        parts: name of a part -> what it does differently from the others.
        adaptive: the solver chooses its own steps, from the state of all the samples that it is given.
    """

    adaptive: ClassVar[bool] = False

    solver: str = "euler"
    steps: int = 50
    shift: float = 1.0
    cfg_scale: float = 1.0
    cfg_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    conditioning_noise: float = 0.0
    batch_invariant: bool = True
    start: float = 1.0
    end: float = 0.0
    parts: dict[str, PartSampling] = field(default_factory=dict)
    shift_rule: str = FIXED
    shift_tokens: int = 4096

    def __new__(cls, solver: str = "euler", *_args: Any, **_settings: Any) -> Self:
        row: Any = choose("solver", solver, SOLVERS) if cls is SamplerConfig else cls
        return super().__new__(row)

    def build(self) -> Integrate:
        """The solver."""
        return on_grid(euler_step)

    def problems(self) -> list[str]:
        if found := not_finite(self):
            return found
        if SOLVERS.get(self.solver) is not type(self):
            found.append(f"solver: {self.solver!r} is not that of {type(self).__name__}; `changed` chooses another")
        least = 1 if self.last_step_length() is None else 2
        if self.steps < least:
            found.append(f"steps: {self.steps} must be at least {least}")
        if self.steps > MOST_STEPS:
            found.append(f"steps: {self.steps} must be at most {MOST_STEPS:,}")
        if not self.shift > 0:
            found.append(f"shift: {self.shift} must be above 0")
        found += shift_problems(self.shift_rule, SHIFT_RULES, self.shift, self.shift_tokens)
        found += _out_of_range("cfg_scale", self.cfg_scale, MOST_CFG_SCALE)
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            found.append(f"cfg_interval: {self.cfg_interval} must be two timesteps in [0, 1], in order")
        if not 0 <= self.conditioning_noise < 1:
            found.append(f"conditioning_noise: {self.conditioning_noise} must lie in [0, 1)")
        if not 0 <= self.end < self.start <= 1:
            found.append(f"start, end: {self.start}, {self.end} must lie in [0, 1], the end below the start")
        found += self._own_problems()
        return found or self._grid_problems() or self._part_problems()

    def _own_problems(self) -> list[str]:
        """Problems of the settings that other solvers do not have."""
        return []

    def _grid_problems(self) -> list[str]:
        """Problems of a grid whose settings are each in range."""
        if all(t > after for t, after in pairwise(self.timesteps())):
            return []
        return [
            f"shift: {self.shift} puts several of the {self.steps} steps at one timestep; bring it nearer to 1, or "
            "move start and end apart"
        ]

    def _part_problems(self) -> list[str]:
        """Problems of parts, where the settings for all of them are right."""
        found = waiting_problems(self.parts)
        for name, part in self.parts.items():
            lines = part.problems() or self.of_part(part).problems()
            if part.stop_at and not lines:
                first, *_, last = self.of_part(part).timesteps()
                if not last < part.stop_at < first:
                    lines.append(
                        f"stop_at: {part.stop_at} must lie between the end and the start, {last:g} and {first:g}"
                    )
            if part.movement() and self.adaptive:
                lines.append(
                    f"{', '.join(part.movement())}: not with {self.solver}, which chooses its steps for all parts at "
                    "once; use a solver with a fixed grid, such as euler"
                )
            found += [f"parts.{name}.{line}" for line in lines]
        return found

    def changed(self, **settings: Any) -> SamplerConfig:
        """With other settings. Of another solver, what both have stays as it is.

        Raises ConfigError for settings that the solver does not have, and for values out of range.
        """
        row = choose("solver", settings.pop("solver", self.solver), SOLVERS)
        names = _names(row)
        found = []
        for name in settings:
            if name not in names:
                having = [solver for solver, other in SOLVERS.items() if name in _names(other)]
                hint = f"; it belongs to {' and '.join(having)}" if having else f".{nearest(name, names)}"
                found.append(f"{name}: no setting of solver {row.solver!r}{hint}")
        if found:
            raise ConfigError(found)
        shared = {name: getattr(self, name) for name in names if name != "solver" and hasattr(self, name)}
        merged: dict[str, Any] = {**shared, "solver": row.solver, **settings}
        config = row(**merged)
        if found := config.problems():
            raise ConfigError(found)
        return config

    def at(self, tokens: int) -> SamplerConfig:
        """The settings for samples of so many tokens, with a fixed shift."""
        if self.shift_rule == FIXED:
            return self
        shift = {
            "sd3": lambda: sd3_shift(self.shift, self.shift_tokens, tokens),
            "flux": lambda: flux_shift(tokens),
            "flux2": lambda: flux2_shift(tokens, self.steps),
        }[self.shift_rule]()
        return replace(self, shift=shift, shift_rule=FIXED)

    def last_step_length(self) -> float | None:
        """Length of a last step of its own; None where the last step is as long as the grid makes it."""
        return None

    def timesteps(self) -> list[float]:
        """steps + 1 decreasing timesteps, after the shift."""
        return time_grid(self.steps, self.shift, self.last_step_length(), self.start, self.end)

    def of_part(self, part: PartSampling) -> SamplerConfig:
        """The settings of one part, as if it was alone; where it ends is left to `path`."""
        own = part.own()
        return replace(self, parts={}, **own | ({"shift_rule": FIXED} if "shift" in own else {}))

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
        """The scale that is farthest from 1, of all parts; 1 means no part is guided."""
        own = [part.cfg_scale for part in self.parts.values() if part.cfg_scale is not None]
        return max((self.cfg_scale, *own), key=lambda scale: abs(scale - 1))


@dataclass
class MidpointConfig(SamplerConfig):
    solver: str = "midpoint"

    def build(self) -> Integrate:
        return on_grid(midpoint_step)


@dataclass
class HeunConfig(SamplerConfig):
    """
    Attributes:
        correct_last: correct the last step as well, or leave it an Euler step (EDM, arXiv 2206.00364, Algorithm 1, and
            REPA's sampler).
    """

    solver: str = "heun"
    correct_last: bool = True

    def build(self) -> Integrate:
        return on_grid(heun_step, None if self.correct_last else euler_step)


@dataclass
class RK4Config(SamplerConfig):
    solver: str = "rk4"

    def build(self) -> Integrate:
        return on_grid(rk4_step)


@dataclass
class Dopri5Config(SamplerConfig):
    """
    Attributes:
        atol, rtol: tolerances of the error (defaults of SiT).
        land_on_end: end the last step at `end`. Off as in SiT, where that step reaches far past the data and is
            interpolated back: the trunk is asked for levels below 0, and the error is larger.
    """

    adaptive: ClassVar[bool] = True

    solver: str = "dopri5"
    atol: float = 1e-6
    rtol: float = 1e-3
    land_on_end: bool = True

    def build(self) -> Integrate:
        return dopri5(self.atol, self.rtol, self.land_on_end)

    def _own_problems(self) -> list[str]:
        values = {"atol": self.atol, "rtol": self.rtol}
        return [f"{name}: {value} must be above 0" for name, value in values.items() if not value > 0]


@dataclass
class SDEConfig(SamplerConfig):
    """
    Attributes:
        diffusion_form, diffusion_norm: the diffusion, a name in core.sampling.sde.DIFFUSION_FORMS, and its scale.
        last_step: how the last step reaches 0, a name in core.sampling.sde.LAST_STEPS.
        last_step_size: timestep at which the last step begins, after the shift.
    """

    solver: str = "sde"
    diffusion_form: str = "sigma"
    diffusion_norm: float = 1.0
    last_step: str = "mean"
    last_step_size: float = LAST_SDE_STEP

    def build(self) -> Integrate:
        d, last = diffusion(self.diffusion_form, self.diffusion_norm), LAST_STEPS[self.last_step]
        return on_grid(self.make_step(d), last and last(d))

    def make_step(self, d: Diffusion) -> Step:
        return euler_maruyama_step(d)

    def last_step_length(self) -> float | None:
        return None if self.last_step == "none" else self.last_step_size

    def _own_problems(self) -> list[str]:
        found = []
        for name, table in (("diffusion_form", DIFFUSION_FORMS), ("last_step", LAST_STEPS)):
            value = getattr(self, name)
            if value not in table:
                found.append(f"{name}: {value!r} is not one of {', '.join(table)}.{nearest(value, table)}")
        found += _out_of_range("diffusion_norm", self.diffusion_norm, MOST_DIFFUSION)
        if not 0 < self.last_step_size < 1:
            found.append(f"last_step_size: {self.last_step_size} must lie between 0 and 1")
        if self.diffusion_form == "sbdm" and self.start == 1:
            found.append("start: 1.0 must be below 1 (0.999, say): diffusion_form sbdm is infinite at 1")
        if self.last_step == "none":
            if self.last_step_size != LAST_SDE_STEP:
                found.append(f"last_step_size: {self.last_step_size} is not read with last_step none; leave it at 0.04")
        else:
            if self.end != 0:
                found.append(
                    f"end: {self.end} must be 0, where last_step {self.last_step} ends; or set last_step to none"
                )
            if self.shift > 0 and self.last_step_size >= shift_number(self.start, self.shift):
                found.append(f"last_step_size: {self.last_step_size} must be below the start")
        return found


@dataclass
class SDEHeunConfig(SDEConfig):
    solver: str = "sde_heun"

    def make_step(self, d: Diffusion) -> Step:
        return sde_heun_step(d)

    def _own_problems(self) -> list[str]:
        found = super()._own_problems()
        if self.last_step == "none" and self.end == 0:
            found.append(
                f"end: {self.end} must be above 0 (0.001, say): sde_heun with last_step none needs the score there"
            )
        return found


SOLVERS: dict[str, type[SamplerConfig]] = {
    "euler": SamplerConfig,
    "midpoint": MidpointConfig,
    "heun": HeunConfig,
    "rk4": RK4Config,
    "dopri5": Dopri5Config,
    "sde": SDEConfig,
    "sde_heun": SDEHeunConfig,
}


def _names(row: type[SamplerConfig]) -> list[str]:
    return [entry.name for entry in fields(row)]


def _out_of_range(name: str, value: float, most: float) -> list[str]:
    if value < 0:
        return [f"{name}: {value} must not be negative"]
    return [f"{name}: {value} must be at most {most:g}"] if value > most else []


def time_grid(
    steps: int, shift: float = 1.0, last_step: float | None = None, start: float = 1.0, end: float = 0.0
) -> list[float]:
    """steps + 1 decreasing timesteps, in float64; by default from 1 (noise) down to 0 (data).

    The first and the last one are the ends themselves, without a rounding: guidance and diffusions look at them.

    Args:
        shift: alpha; evenly spaced timesteps are moved by alpha t / (1 + (alpha - 1) t) (paper A.2).
        last_step: length of the last step, which ends at 0; the others share what is above it. None: as even as the
            rest.
        start, end: the ends of the evenly spaced timesteps, before the shift; `end` is for grids without a last step.
    """
    if last_step is None:
        between = [end + (start - end) * ((steps - i) / steps) for i in range(1, steps)]
        return [shift_number(t, shift) for t in (start, *between, end)]
    first = shift_number(start, shift)
    return [first, *(last_step + (first - last_step) * t for t in time_grid(steps - 1, shift)[1:]), 0.0]
