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
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import ConfigError, nearest
from core.kinds import combined, row
from core.schedule import TimestepConfig, sample_timesteps
from core.types import NoiseLevels


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


@dataclass
class NoisingConfig:
    """Levels of student and teacher: what all kinds have, and one timestep for all tokens, which needs nothing else.

    `NoisingConfig("dual", teacher="earlier", teacher_gap=0.2)` makes the dataclass of that kind and teacher, a row of
    NOISINGS, and raises ConfigError for those that do not exist.

    Attributes:
        kind: homogeneous (one timestep for all tokens), dual (Self-Flow: t and s, unsorted, a mask picks s),
            full_masking (masked tokens are pure noise), diffusion_forcing (one timestep per token).
        teacher: min (Self-Flow: all tokens at the cleanest level) or earlier (SRA: each level t becomes
            max(0, t - teacher_gap u), u uniform in [0, 1], drawn for each level).
    """

    kind: str = "homogeneous"
    teacher: str = "min"

    def __new__(cls, kind: str = "homogeneous", teacher: str = "min", **_settings: Any) -> Self:
        chosen: Any = row(NOISINGS, {"kind": kind, "teacher": teacher}) if cls is NoisingConfig else cls
        return super().__new__(chosen)

    def problems(self) -> list[str]:
        return []

    def separates(self) -> bool:
        """Whether tokens attend only to tokens of their own level."""
        return False

    def student_levels(
        self, timestep: TimestepConfig, mask_ratio: float, length: int, generator: torch.Generator
    ) -> SampleLevels:
        """Levels that the plan draws for a sample of `length` tokens."""
        return SampleLevels(sample_timesteps(timestep, 1, generator))

    def teacher_levels(self, student: SampleLevels, generator: torch.Generator) -> SampleLevels:
        """What the teacher sees in place of the student's levels."""
        return SampleLevels(student.values.min()[None])

    def student_count(self, length: int) -> int:
        """How many levels a sample of `length` tokens has."""
        return 1

    def teacher_count(self, length: int) -> int:
        """How many of them the teacher sees."""
        return 1


@dataclass
class EarlierTeacher(NoisingConfig):
    """
    Attributes:
        teacher_gap: SRA and arXiv 2607.02508 have 0.2.
    """

    teacher_gap: float = 0.2

    def problems(self) -> list[str]:
        own = [] if 0 < self.teacher_gap <= 1 else [f"teacher_gap: {self.teacher_gap} must lie in (0, 1]"]
        return super().problems() + own

    def teacher_levels(self, student: SampleLevels, generator: torch.Generator) -> SampleLevels:
        gap = self.teacher_gap * torch.rand(len(student.values), generator=generator)
        return replace(student, values=(student.values - gap).clamp_min(0))

    def teacher_count(self, length: int) -> int:
        return self.student_count(length)


@dataclass
class FullMasking(NoisingConfig):
    """
    Attributes:
        mask: bernoulli (each token by itself, as the paper) or exact (a fixed count of tokens, the nearest to the
            ratio; a half is rounded up).
    """

    mask: str = "bernoulli"

    def problems(self) -> list[str]:
        known = self.mask in _MASKS
        own = [] if known else [f"mask: {self.mask!r} is not one of {', '.join(_MASKS)}.{nearest(self.mask, _MASKS)}"]
        return super().problems() + own

    def student_levels(
        self, timestep: TimestepConfig, mask_ratio: float, length: int, generator: torch.Generator
    ) -> SampleLevels:
        t = sample_timesteps(timestep, 1, generator)
        mask = _MASKS[self.mask](mask_ratio, length, generator)
        return SampleLevels(torch.cat([t, torch.ones(1)]), mask.long())

    def student_count(self, length: int) -> int:
        return 2


@dataclass
class Dual(FullMasking):
    """
    Attributes:
        s_within: draw s uniformly in [t - s_within, t] instead of from p(t); 0 means off.
        homogeneous_prob: share of samples where s = t.
        attention_separation: tokens attend only to tokens of their own level (arXiv 2607.02508); needs mask exact, so
            that every sample of a batch has groups of the same size. Refused for samples with given tokens, which
            belong to no group and have to be seen by both.
    """

    s_within: float = 0.0
    homogeneous_prob: float = 0.0
    attention_separation: bool = False

    def problems(self) -> list[str]:
        found = super().problems()
        if self.attention_separation and self.mask != "exact":
            found.append(f"attention_separation: needs mask exact, groups of one size; mask is {self.mask!r}")
        if self.attention_separation and self.homogeneous_prob > 0:
            found.append(
                f"homogeneous_prob: {self.homogeneous_prob} would put samples of one group among samples of two; not "
                "with attention_separation"
            )
        for name in ("s_within", "homogeneous_prob"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: {getattr(self, name)} must lie in [0, 1]")
        return found

    def separates(self) -> bool:
        return self.attention_separation

    def student_levels(
        self, timestep: TimestepConfig, mask_ratio: float, length: int, generator: torch.Generator
    ) -> SampleLevels:
        t, s = sample_timesteps(timestep, 2, generator)
        within, same = torch.rand(2, generator=generator)
        if self.s_within > 0:
            s = (t - self.s_within * within).clamp_min(0)
        if same < self.homogeneous_prob:
            s = t
        index = _MASKS[self.mask](mask_ratio, length, generator).long()
        count = picked(mask_ratio, length)
        separate = (length - count, count) if self.attention_separation else None
        return SampleLevels(torch.stack([t, s]), index, separate)


@dataclass
class DiffusionForcing(NoisingConfig):
    def student_levels(
        self, timestep: TimestepConfig, mask_ratio: float, length: int, generator: torch.Generator
    ) -> SampleLevels:
        return SampleLevels(sample_timesteps(timestep, length, generator), torch.arange(length))

    def student_count(self, length: int) -> int:
        return length


KINDS: dict[str, type[NoisingConfig]] = {
    "homogeneous": NoisingConfig,
    "dual": Dual,
    "full_masking": FullMasking,
    "diffusion_forcing": DiffusionForcing,
}
TEACHERS: dict[str, type[NoisingConfig]] = {"min": NoisingConfig, "earlier": EarlierTeacher}
NOISINGS = combined(NoisingConfig, __name__, {"kind": KINDS, "teacher": TEACHERS})


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
    student = config.student_levels(timestep.at(sum(lengths)), mask_ratio, sum(lengths), generator)
    teacher = config.teacher_levels(student, generator)
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
