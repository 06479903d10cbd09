"""Which noise level each token gets: the noising plans of the method table.

A plan is drawn for one sample, on the CPU, from that sample's own generator; batches only stack samples. The
student's levels follow the plan. What the teacher sees is one of `TEACHERS`: the whole sample at the cleanest of the
levels that the plan drew (paper 3.4: min(t, s), of the drawn pair and not of the realized tokens, which differ when a
group is empty), or every token a little earlier than the student sees it (SRA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.errors import ConfigError, choose, nearest
from core.schedule import TimestepConfig, sample_timesteps
from core.types import NoiseLevels


@dataclass
class NoisingConfig:
    """
    Attributes:
        kind: homogeneous (one timestep for all tokens), dual (Self-Flow: t and s, unsorted, a mask picks s),
            full_masking (masked tokens are pure noise), diffusion_forcing (one timestep per token).
        mask: of dual and full_masking: bernoulli (each token by itself, as the paper) or exact (a fixed count of
            tokens, the nearest to the ratio; a half is rounded up).
        s_within: with dual, draw s uniformly in [t - s_within, t] instead of from p(t); 0 means off.
        homogeneous_prob: with dual, share of samples where s = t.
        attention_separation: with dual, tokens attend only to tokens of their own level (arXiv 2607.02508); needs
            mask exact, so that every sample of a batch has groups of the same size. Refused for samples with given
            tokens, which belong to no group and have to be seen by both.
        teacher: min (Self-Flow: all tokens at the cleanest level) or earlier (SRA: each level t becomes
            max(0, t - teacher_gap u), u uniform in [0, 1], drawn for each level).
        teacher_gap: of `earlier`; SRA and arXiv 2607.02508 have 0.2.
    """

    kind: str = "homogeneous"
    mask: str = "bernoulli"
    s_within: float = 0.0
    homogeneous_prob: float = 0.0
    attention_separation: bool = False
    teacher: str = "min"
    teacher_gap: float = 0.2

    def problems(self) -> list[str]:
        found = []
        tables = {"kind": _PLANS, "mask": _MASKS, "teacher": TEACHERS}
        for name, table in tables.items():
            value = getattr(self, name)
            if value not in table:
                found.append(f"{name}: {value!r} is not one of {', '.join(table)}.{nearest(value, table)}")
        if not 0 < self.teacher_gap <= 1:
            found.append(f"teacher_gap: {self.teacher_gap} must lie in (0, 1]")
        elif self.teacher_gap != NoisingConfig.teacher_gap and self.teacher != "earlier":
            found.append(f"teacher_gap: {self.teacher_gap} is not read with teacher {self.teacher!r}; only 'earlier'")
        if self.mask != NoisingConfig.mask and self.mask in _MASKS and self.kind not in ("dual", "full_masking"):
            found.append(f"mask: {self.mask!r} is not read with kind {self.kind!r}; only with dual and full_masking")
        if self.attention_separation:
            if self.kind != "dual":
                found.append(f"attention_separation: needs kind dual, two groups to separate; kind is {self.kind!r}")
            if self.mask != "exact":
                found.append(f"attention_separation: needs mask exact, groups of one size; mask is {self.mask!r}")
            if self.homogeneous_prob > 0:
                found.append(
                    f"homogeneous_prob: {self.homogeneous_prob} would put samples of one group among samples of "
                    "two; not with attention_separation"
                )
        for name in ("s_within", "homogeneous_prob"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: {getattr(self, name)} must lie in [0, 1]")
            elif getattr(self, name) > 0 and self.kind != "dual":
                found.append(f"{name}: {getattr(self, name)} has no meaning with kind {self.kind!r}; only with 'dual'")
        return found


@dataclass(frozen=True)
class SampleLevels:
    """Levels of one sample: values (K,); index (L,) unless all tokens share values[0]; sizes of separate groups."""

    values: Tensor
    index: Tensor | None = None
    separate: tuple[int, ...] | None = None


@dataclass(frozen=True)
class NoiseSample:
    """All randomness of a batch: noise (B, N, C) per segment, and the levels of student and teacher."""

    noise: tuple[Tensor, ...]
    student: NoiseLevels
    teacher: NoiseLevels


def _bernoulli_mask(ratio: float, length: int, generator: torch.Generator) -> Tensor:
    return torch.rand(length, generator=generator) < ratio


def picked(ratio: float, length: int) -> int:
    """Tokens that an exact mask picks: the nearest count, a half rounded up, as SRA's SiT-SRA_DTS_AS/loss.py gives the
    remainder. (1e-9 undoes the rounding of products like 0.29 x 50, which is just below 14.5.)"""
    return math.floor(ratio * length + 0.5 + 1e-9)


def _exact_mask(ratio: float, length: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[torch.randperm(length, generator=generator)[: picked(ratio, length)]] = True
    return mask


_MASKS = {"bernoulli": _bernoulli_mask, "exact": _exact_mask}


def _homogeneous(
    config: NoisingConfig, timestep: TimestepConfig, ratio: float, length: int, generator: torch.Generator
) -> SampleLevels:
    return SampleLevels(sample_timesteps(timestep, 1, generator))


def _dual(
    config: NoisingConfig, timestep: TimestepConfig, ratio: float, length: int, generator: torch.Generator
) -> SampleLevels:
    t, s = sample_timesteps(timestep, 2, generator)
    within, same = torch.rand(2, generator=generator)
    if config.s_within > 0:
        s = (t - config.s_within * within).clamp_min(0)
    if same < config.homogeneous_prob:
        s = t
    index = _MASKS[config.mask](ratio, length, generator).long()
    count = picked(ratio, length)
    separate = (length - count, count) if config.attention_separation else None
    return SampleLevels(torch.stack([t, s]), index, separate)


def _full_masking(
    config: NoisingConfig, timestep: TimestepConfig, ratio: float, length: int, generator: torch.Generator
) -> SampleLevels:
    t = sample_timesteps(timestep, 1, generator)
    mask = _MASKS[config.mask](ratio, length, generator)
    return SampleLevels(torch.cat([t, torch.ones(1)]), mask.long())


def _diffusion_forcing(
    config: NoisingConfig, timestep: TimestepConfig, ratio: float, length: int, generator: torch.Generator
) -> SampleLevels:
    return SampleLevels(sample_timesteps(timestep, length, generator), torch.arange(length))


_PLANS = {
    "homogeneous": _homogeneous,
    "dual": _dual,
    "full_masking": _full_masking,
    "diffusion_forcing": _diffusion_forcing,
}


def _cleanest(config: NoisingConfig, student: SampleLevels, generator: torch.Generator) -> SampleLevels:
    return SampleLevels(student.values.min()[None])


def _earlier(config: NoisingConfig, student: SampleLevels, generator: torch.Generator) -> SampleLevels:
    gap = config.teacher_gap * torch.rand(len(student.values), generator=generator)
    return replace(student, values=(student.values - gap).clamp_min(0))


TEACHERS = {"min": _cleanest, "earlier": _earlier}


def student_levels(
    config: NoisingConfig, timestep: TimestepConfig, mask_ratio: float, length: int, generator: torch.Generator
) -> SampleLevels:
    """Levels that the plan draws for a sample of `length` tokens."""
    return choose("noising.kind", config.kind, _PLANS)(config, timestep, mask_ratio, length, generator)


def teacher_levels(config: NoisingConfig, student: SampleLevels, generator: torch.Generator) -> SampleLevels:
    """What the teacher sees in place of the student's levels."""
    return choose("noising.teacher", config.teacher, TEACHERS)(config, student, generator)


def level_counts(config: NoisingConfig, length: int) -> tuple[int, int]:
    """How many levels these two have, for a sample of `length` tokens."""
    student = {"homogeneous": 1, "diffusion_forcing": length}.get(config.kind, 2)
    return student, 1 if config.teacher == "min" else student


def draw_levels(
    config: NoisingConfig,
    timestep: TimestepConfig,
    mask_ratio: float,
    lengths: Sequence[int],
    generator: torch.Generator,
    conditioning_mask: Tensor | None = None,
    conditioning_noise: float = 0.0,
) -> tuple[SampleLevels, SampleLevels]:
    """Student and teacher levels of one sample: one draw for all of its tokens (core/modes.py has others).

    Args:
        mask_ratio: R_M, share of tokens that the mask picks.
        lengths: tokens of each part; their sum is L.
        conditioning_mask: (L,) bool, conditioning tokens; student and teacher both see them at one level drawn
            uniformly in [0, conditioning_noise], whatever the plan says.

    Raises:
        ConfigError: given tokens under attention separation.
    """
    student = student_levels(config, timestep.at(sum(lengths)), mask_ratio, sum(lengths), generator)
    teacher = teacher_levels(config, student, generator)
    if conditioning_mask is None:
        return student, teacher
    if student.separate is not None:
        raise ConfigError("noising.attention_separation: given tokens belong to no group; not with given tokens")
    level = torch.rand(1, generator=generator) * conditioning_noise
    return _with_conditioning(student, conditioning_mask, level), _with_conditioning(teacher, conditioning_mask, level)


def _with_conditioning(levels: SampleLevels, conditioning_mask: Tensor, level: Tensor) -> SampleLevels:
    """One more level, for the given tokens."""
    index = torch.zeros(len(conditioning_mask), dtype=torch.long) if levels.index is None else levels.index
    return SampleLevels(torch.cat([levels.values, level]), torch.where(conditioning_mask, len(levels.values), index))


def stack_levels(samples: list[SampleLevels]) -> NoiseLevels:
    """Levels of one plan, sample by sample -> one NoiseLevels for the batch."""
    indices = [sample.index for sample in samples if sample.index is not None]  # all or none have one
    index = torch.stack(indices) if indices else None
    return NoiseLevels(torch.stack([sample.values for sample in samples]), index, samples[0].separate)
