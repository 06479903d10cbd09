"""Which noise level each token gets: the noising plans of the method table.

A plan is drawn for one sample, on the CPU, from that sample's own generator; batches only stack samples. The
student's levels follow the plan. The teacher sees the whole sample at the cleaner of the levels that the plan drew
(paper 3.4: min(t, s), of the drawn pair and not of the realised tokens, which differ when a group is empty).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import choose
from core.schedule import TimeConfig, sample_times
from core.types import NoiseLevels


@dataclass
class NoisingConfig:
    """
    Attributes:
        kind: homogeneous (one time for all tokens), dual (Self-Flow: t and s, unsorted, a mask picks s),
            full_masking (masked tokens are pure noise), diffusion_forcing (one time per token).
        mask: bernoulli (each token by itself, as the paper) or exact (a fixed count of tokens).
        s_within: with dual, draw s uniformly in [t - s_within, t] instead of from p(t); 0 means off.
        homogeneous_share: with dual, share of samples where s = t.
    """

    kind: str = "homogeneous"
    mask: str = "bernoulli"
    s_within: float = 0.0
    homogeneous_share: float = 0.0

    def problems(self) -> list[str]:
        found = []
        if self.kind not in _PLANS:
            found.append(f"kind: {self.kind!r} is not one of {', '.join(_PLANS)}")
        if self.mask not in _MASKS:
            found.append(f"mask: {self.mask!r} is not one of {', '.join(_MASKS)}")
        for name in ("s_within", "homogeneous_share"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: {getattr(self, name)} must lie in [0, 1]")
            elif getattr(self, name) > 0 and self.kind != "dual":
                found.append(f"{name}: {getattr(self, name)} has no meaning with kind {self.kind!r}; only with 'dual'")
        return found


@dataclass(frozen=True)
class SampleLevels:
    """Levels of one sample: values (K,) and, unless all tokens share values[0], an index (L,)."""

    values: Tensor
    index: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """All randomness of a batch: noise (B, N, C) per segment, and the levels of student and teacher."""

    noise: tuple[Tensor, ...]
    student: NoiseLevels
    teacher: NoiseLevels


def _bernoulli_mask(ratio: float, length: int, generator: torch.Generator) -> Tensor:
    return torch.rand(length, generator=generator) < ratio


def _exact_mask(ratio: float, length: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[: round(ratio * length)]] = True
    return mask


_MASKS = {"bernoulli": _bernoulli_mask, "exact": _exact_mask}


def _homogeneous(config, time, ratio, length, generator):
    t = sample_times(time, 1, generator)
    return SampleLevels(t), t


def _dual(config, time, ratio, length, generator):
    t, s = sample_times(time, 2, generator)
    within, same = torch.rand(2, generator=generator)
    if config.s_within > 0:
        s = (t - config.s_within * within).clamp_min(0)
    if same < config.homogeneous_share:
        s = t
    mask = _MASKS[config.mask](ratio, length, generator)
    return SampleLevels(torch.stack([t, s]), mask.long()), torch.minimum(t, s)[None]


def _full_masking(config, time, ratio, length, generator):
    t = sample_times(time, 1, generator)
    mask = _MASKS[config.mask](ratio, length, generator)
    return SampleLevels(torch.cat([t, torch.ones(1)]), mask.long()), t


def _diffusion_forcing(config, time, ratio, length, generator):
    times = sample_times(time, length, generator)
    return SampleLevels(times, torch.arange(length)), times.min()[None]


_PLANS = {
    "homogeneous": _homogeneous,
    "dual": _dual,
    "full_masking": _full_masking,
    "diffusion_forcing": _diffusion_forcing,
}


def draw_levels(
    config: NoisingConfig,
    time: TimeConfig,
    mask_ratio: float,
    length: int,
    generator: torch.Generator,
    given: Tensor | None = None,
    given_noise: float = 0.0,
) -> tuple[SampleLevels, SampleLevels]:
    """Student and teacher levels of one sample of `length` tokens.

    Args:
        mask_ratio: R_M, share of tokens that the mask picks.
        given: (L,) bool, conditioning tokens; student and teacher both see them at one level drawn uniformly
            in [0, given_noise], whatever the plan says.
    """
    student, cleaner = choose("noising.kind", config.kind, _PLANS)(config, time, mask_ratio, length, generator)
    teacher = SampleLevels(cleaner)
    if given is None:
        return student, teacher
    level = torch.rand(1, generator=generator) * given_noise
    return _with_given(student, given, level), _with_given(teacher, given, level)


def _with_given(levels: SampleLevels, given: Tensor, level: Tensor) -> SampleLevels:
    index = torch.zeros(len(given), dtype=torch.long) if levels.index is None else levels.index
    return SampleLevels(torch.cat([levels.values, level]), torch.where(given, len(levels.values), index))


def stack_levels(samples: list[SampleLevels]) -> NoiseLevels:
    """Levels of one plan, sample by sample -> one NoiseLevels for the batch."""
    index = None if samples[0].index is None else torch.stack([sample.index for sample in samples])
    return NoiseLevels(torch.stack([sample.values for sample in samples]), index)
