"""p(t): how training timesteps are drawn (paper A.2 and App. C; RAE, arXiv 2510.11690, for the cut and the shift)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import choose
from core.flow import shift_time
from core.shift import FIXED, flux_shift, sd3_shift, shift_problems

SHIFT_RULES = (FIXED, "sd3", "flux")


@dataclass
class TimestepConfig:
    """The distribution of training timesteps: the t of a sample, 0 for data and 1 for noise. What all kinds have.

    A timestep is what is drawn for a sample or set in a configuration; the noise level of a token is one of its
    sample's timesteps, or 0 where it is given clean.

    `TimestepConfig("logit_normal", mean=0.3)` makes the dataclass of that kind, a row of TIMESTEPS, and raises
    ConfigError for a kind that does not exist.

    Attributes:
        kind: uniform, logit_normal, or plateau_logit_normal (the logit-normal density up to its mode, then held
            constant up to t = 1 and renormalized).
        shift: alpha of the shift map; for a logit-normal it adds log(alpha) to the mean. RAE takes it from the size of
            the latents, see `dimension_shift`.
        shift_rule: fixed (alpha is `shift`), or by the tokens of a sample: sd3 (`shift` holds for `shift_tokens` and
            grows with the root of their number) or flux (FLUX's own line, without `shift`); see core/shift.py.
        shift_tokens: tokens of a sample at which sd3 has `shift`: 4096 are 1024 x 1024 pixels in cells of 16.
        high_noise_prob: share of timesteps replaced by uniform ones in [high_noise_low, 1], each independently.
        buckets: timesteps take only this many values, the middles of equal parts of [0, 1], which are equally likely if
            p(t) is uniform; 0 for all values. The t and s of a pair are rounded each by itself. (GR00T floors the
            timestep that its network gets to 1000 `num_timestep_buckets`.)
    """

    kind: str = "uniform"
    shift: float = 1.0
    shift_rule: str = FIXED
    shift_tokens: int = 4096
    high_noise_prob: float = 0.0
    high_noise_low: float = 0.95
    buckets: int = 0

    def __new__(cls, kind: str = "uniform", **_settings: Any) -> Self:
        row: Any = choose("kind", kind, TIMESTEPS) if cls is TimestepConfig else cls
        return super().__new__(row)

    def ends(self) -> tuple[float, float]:
        """Where the density begins and ends, before the shift."""
        return 0.0, 1.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float64 timesteps, shifted; before some are replaced by high noise, and rounded to buckets."""
        return uniform_times(torch.rand(count, generator=generator, dtype=torch.float64), self)

    def problems(self) -> list[str]:
        found = [] if self.shift > 0 else [f"shift: {self.shift} must be above 0"]
        found += shift_problems(self.shift_rule, SHIFT_RULES, self.shift, self.shift_tokens)
        if not 0 <= self.high_noise_prob <= 1:
            found.append(f"high_noise_prob: {self.high_noise_prob} must lie in [0, 1]")
        if not 0 <= self.high_noise_low < 1:
            found.append(f"high_noise_low: {self.high_noise_low} must lie in [0, 1)")
        if self.buckets < 0:
            found.append(f"buckets: {self.buckets} must be at least 1, or 0 for none")
        return found

    def at(self, tokens: int) -> TimestepConfig:
        """p(t) of a sample of so many tokens, with a fixed shift."""
        if self.shift_rule == FIXED:
            return self
        shift = flux_shift(tokens) if self.shift_rule == "flux" else sd3_shift(self.shift, self.shift_tokens, tokens)
        return replace(self, shift=shift, shift_rule=FIXED)


@dataclass
class UniformTimesteps(TimestepConfig):
    """
    Attributes:
        low, high: timesteps outside are never drawn: the density is cut off there and renormalized, before the shift
            is applied. RAE trains within 0 and 0.999.
    """

    low: float = 0.0
    high: float = 1.0

    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def problems(self) -> list[str]:
        inside = 0 <= self.low < self.high <= 1
        own = [] if inside else [f"low, high: {self.low}, {self.high} must lie in [0, 1], low below high"]
        return own + super().problems()


@dataclass
class NormalTimesteps(TimestepConfig):
    """
    Attributes:
        mean, std: of the normal variable whose sigmoid is the timestep.
    """

    mean: float = 0.0
    std: float = 1.0

    def problems(self) -> list[str]:
        return ([] if self.std > 0 else [f"std: {self.std} must be above 0"]) + super().problems()


@dataclass
class LogitNormalTimesteps(NormalTimesteps, UniformTimesteps):
    """The sigmoid of a normal variable; `low` and `high` as of UniformTimesteps."""

    kind: str = "logit_normal"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        if self.ends() != (0, 1):
            return cut_logit_normal_times(torch.rand(count, generator=generator, dtype=torch.float64), self)
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        return torch.sigmoid(normal * self.std + self.mean + math.log(self.shift))

    def problems(self) -> list[str]:
        found = super().problems()
        if not found and (kept := _kept(self)) < _LEAST_KEPT:
            found.append(f"low, high: {self.low}, {self.high} keep {kept:.1g} of the density, must be {_LEAST_KEPT:g}")
        return found


@dataclass
class PlateauTimesteps(NormalTimesteps):
    """The logit-normal density up to its mode, and as high as there from the mode to 1."""

    kind: str = "plateau_logit_normal"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        mu = self.mean + math.log(self.shift)
        mode, (below, plateau) = plateau_start(mu, self.std), plateau_masses(mu, self.std)
        u, position = torch.rand(2, count, generator=generator, dtype=torch.float64)
        flat = mode + (1 - mode) * position
        # A normal variable cut off above: its quantile at `below` of the full mass is the mode.
        normal = torch.special.ndtri((position * below).clamp_min(1e-300))
        rising = torch.sigmoid(normal * self.std + mu)
        return torch.where(u * (below + plateau) < below, rising, flat)

    def problems(self) -> list[str]:
        modes = self.std > math.sqrt(2)
        own = [f"std: {self.std} gives a density with two modes and no plateau; at most 1.414"] if modes else []
        return super().problems() + own


TIMESTEPS: dict[str, type[TimestepConfig]] = {
    "uniform": UniformTimesteps,
    "logit_normal": LogitNormalTimesteps,
    "plateau_logit_normal": PlateauTimesteps,
}
_LEAST_KEPT = 1e-6  # less would be quantiles that float64 cannot tell apart


def dimension_shift(dim: int, base: int = 4096) -> float:
    """RAE's shift for latents of `dim` numbers in all: sqrt(dim / base), 6.93 for 16 x 16 x 768.

    Latents with more numbers show through more noise, so timesteps move toward noise. At or below the base the shift is
    1, no shift: its source accepts no smaller one.
    """
    return max(1.0, math.sqrt(dim / base))


def plateau_start(mu: float, std: float = 1.0) -> float:
    """The mode t* of a logit-normal: logit(t*) - mu = std^2 (2 t* - 1), which has one root for std^2 <= 2."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        slope_sign = math.log(middle / (1 - middle)) - mu - std**2 * (2 * middle - 1)
        low, high = (middle, high) if slope_sign < 0 else (low, middle)
    return (low + high) / 2


def plateau_masses(mu: float, std: float = 1.0) -> tuple[float, float]:
    """(mass below t*, mass of the plateau) before renormalization; their sum is Z."""
    mode = plateau_start(mu, std)
    z = (math.log(mode / (1 - mode)) - mu) / std
    density = math.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * std * mode * (1 - mode))
    return 0.5 * (1 + math.erf(z / math.sqrt(2))), (1 - mode) * density


def uniform_times(u: Tensor, config: TimestepConfig) -> Tensor:
    """u in [0, 1) -> timesteps: uniform between low and high, then shifted."""
    low, high = config.ends()
    return shift_time(low + (high - low) * u, config.shift)


def cut_logit_normal_times(u: Tensor, config: LogitNormalTimesteps) -> Tensor:
    """u in [0, 1) -> timesteps: the logit-normal's quantiles between low and high, then shifted."""
    below, above = _normal_share(config, config.low), _normal_share(config, config.high)
    normal = torch.special.ndtri(below + (above - below) * u)
    timesteps = torch.sigmoid(normal * config.std + config.mean).clamp(config.low, config.high)
    return shift_time(timesteps, config.shift)


def _normal_share(config: LogitNormalTimesteps, t: float) -> float:
    """Share of the logit-normal density below `t`."""
    if t in (0, 1):
        return float(t)
    return 0.5 * math.erfc((config.mean - math.log(t / (1 - t))) / (config.std * math.sqrt(2)))


def _kept(config: LogitNormalTimesteps) -> float:
    return _normal_share(config, config.high) - _normal_share(config, config.low)


def sample_timesteps(config: TimestepConfig, count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32 timesteps in [0, 1], independent draws from p(t)."""
    timesteps = config.draw(count, generator)
    if config.high_noise_prob > 0:
        replaced, position = torch.rand(2, count, generator=generator, dtype=torch.float64)
        high = config.high_noise_low + (1 - config.high_noise_low) * position
        timesteps = torch.where(replaced < config.high_noise_prob, high, timesteps)
    if config.buckets:
        number = (timesteps * config.buckets).floor().clamp_max(config.buckets - 1)  # 1 itself is in the last one
        timesteps = (number + 0.5) / config.buckets
    return timesteps.float()
