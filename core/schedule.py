"""p(t): how training times are drawn (paper A.2 and App. C)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import choose
from core.flow import shift_time


@dataclass
class TimeConfig:
    """The distribution of training times.

    Attributes:
        kind: uniform, logit_normal, or plateau_logit_normal (the logit-normal density up to its mode, then held
            constant up to t = 1 and renormalised).
        mean, std: of the normal variable whose sigmoid is the time; not used by `uniform`.
        shift: alpha of the shift map; for a logit-normal it adds log(alpha) to the mean.
        high_noise_share: share of times replaced by uniform ones in [high_noise_low, 1], each independently.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    high_noise_share: float = 0.0
    high_noise_low: float = 0.95

    def problems(self) -> list[str]:
        found = []
        if self.kind not in _KINDS:
            found.append(f"kind: {self.kind!r} is not one of {', '.join(_KINDS)}")
        if self.std <= 0:
            found.append(f"std: {self.std} must be above 0")
        if self.kind == "plateau_logit_normal" and self.std > math.sqrt(2):
            found.append(f"std: {self.std} gives a density with two modes and no plateau; at most 1.414")
        if self.shift <= 0:
            found.append(f"shift: {self.shift} must be above 0")
        if not 0 <= self.high_noise_share <= 1:
            found.append(f"high_noise_share: {self.high_noise_share} must lie in [0, 1]")
        if not 0 <= self.high_noise_low < 1:
            found.append(f"high_noise_low: {self.high_noise_low} must lie in [0, 1)")
        return found


def plateau_start(mu: float, std: float = 1.0) -> float:
    """The mode t* of a logit-normal: logit(t*) - mu = std^2 (2 t* - 1), which has one root for std^2 <= 2."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        slope_sign = math.log(middle / (1 - middle)) - mu - std**2 * (2 * middle - 1)
        low, high = (middle, high) if slope_sign < 0 else (low, middle)
    return (low + high) / 2


def plateau_masses(mu: float, std: float = 1.0) -> tuple[float, float]:
    """(mass below t*, mass of the plateau) before renormalisation; their sum is Z."""
    mode = plateau_start(mu, std)
    z = (math.log(mode / (1 - mode)) - mu) / std
    density = math.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * std * mode * (1 - mode))
    return 0.5 * (1 + math.erf(z / math.sqrt(2))), (1 - mode) * density


def _uniform(config: TimeConfig, count: int, generator: torch.Generator) -> Tensor:
    return shift_time(torch.rand(count, generator=generator, dtype=torch.float64), config.shift)


def _logit_normal(config: TimeConfig, count: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.sigmoid(normal * config.std + config.mean + math.log(config.shift))


def _plateau_logit_normal(config: TimeConfig, count: int, generator: torch.Generator) -> Tensor:
    mu = config.mean + math.log(config.shift)
    mode, (below, plateau) = plateau_start(mu, config.std), plateau_masses(mu, config.std)
    u, position = torch.rand(2, count, generator=generator, dtype=torch.float64)
    flat = mode + (1 - mode) * position
    # A normal variable cut off above: its quantile at `below` of the full mass is the mode.
    normal = torch.special.ndtri((position * below).clamp_min(1e-300))
    rising = torch.sigmoid(normal * config.std + mu)
    return torch.where(u * (below + plateau) < below, rising, flat)


_KINDS = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "plateau_logit_normal": _plateau_logit_normal,
}


def sample_times(config: TimeConfig, count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32 times in [0, 1], independent draws from p(t)."""
    times = choose("time.kind", config.kind, _KINDS)(config, count, generator)
    if config.high_noise_share > 0:
        replaced, position = torch.rand(2, count, generator=generator, dtype=torch.float64)
        high = config.high_noise_low + (1 - config.high_noise_low) * position
        times = torch.where(replaced < config.high_noise_share, high, times)
    return times.float()
