"""From the settings of a sampler to the levels of all parts at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from core.errors import ConfigError, nearest
from core.sampling.config import SamplerConfig
from core.sampling.levels import Levels, LevelSchedule
from core.sampling.noise import part_levels
from core.sampling.parts import PartSampling
from core.types import NoiseLevels, Segment, TokenBatch


@dataclass(frozen=True)
class PlannedPart:
    """How one part of a batch is sampled.

    Attributes:
        conditioning_noise: level of its conditioning tokens; 1 for all tokens of an absent part.
        cfg_scale, cfg_interval: of its guidance.
        tweedie: it stops early, and its expected data are wanted.
    """

    absent: bool
    conditioning_noise: float
    cfg_scale: float
    cfg_interval: tuple[float, float]
    tweedie: bool

    def scale(self, t: float) -> float:
        """The guidance scale at a level; 1 where there is no guidance."""
        low, high = self.cfg_interval
        return self.cfg_scale if low <= min(max(t, 0.0), 1.0) <= high else 1.0  # dopri5 may look past the end


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        batch: without the omitted parts; all tokens of absent ones are conditioning.
        kept: places of its segments in the whole batch.
    """

    config: SamplerConfig
    batch: TokenBatch
    kept: tuple[int, ...]
    parts: tuple[PlannedPart, ...]
    schedule: LevelSchedule

    def pick(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The parts of a state that are not omitted."""
        return tuple(state[place] for place in self.kept)

    def levels(self, batch: TokenBatch, t: Levels, dtype: torch.dtype) -> NoiseLevels:
        """The levels of a batch with the same parts, which are at `t`."""
        free = [None if part.absent else level for part, level in zip(self.parts, t, strict=True)]
        return part_levels(batch, free, [part.conditioning_noise for part in self.parts], dtype)


def make_plan(config: SamplerConfig, batch: TokenBatch) -> Plan:
    """How a batch is sampled. Raises ConfigError where the settings of parts do not fit it."""
    settings = {segment.name: config.parts.get(segment.name, PartSampling()) for segment in batch.segments}
    schedule = level_schedule(config, list(settings))
    kept = tuple(place for place, part in enumerate(settings.values()) if not part.omit)
    given = [
        f"parts.{segment.name}.{'omit' if settings[segment.name].omit else 'absent'}: some of its tokens are given"
        for segment in batch.segments
        if not settings[segment.name].sampled
        and segment.conditioning_mask is not None
        and bool(segment.conditioning_mask.any())
    ]
    if given:
        raise ConfigError(given)
    segments = tuple(_all_conditioning(s) if settings[s.name].absent else s for s in batch.segments)
    planned = []
    for part in settings.values():
        own = config.of_part(part)
        low, high = own.cfg_interval
        level = 1.0 if part.absent else own.conditioning_noise
        tweedie = part.tweedie and part.stop_at > 0
        planned.append(PlannedPart(part.absent, level, own.cfg_scale, (low, high), tweedie))
    rows = tuple(tuple(row[place] for place in kept) for row in schedule.rows)
    return Plan(
        config,
        replace(batch, segments=tuple(segments[place] for place in kept)),
        kept,
        tuple(planned[place] for place in kept),
        LevelSchedule(rows, tuple(schedule.lands[place] for place in kept)),
    )


def _all_conditioning(segment: Segment) -> Segment:
    mask = torch.ones(segment.x0.shape[:2], dtype=torch.bool, device=segment.x0.device)
    return replace(segment, conditioning_mask=mask)


def level_schedule(config: SamplerConfig, names: Sequence[str]) -> LevelSchedule:
    """The schedule of samples with these parts. Absent and omitted ones are at 1, and no step waits for them.

    Raises ConfigError for settings of parts that are not among `names`, and where nothing is sampled.
    """
    if problems := part_name_problems(config, names):
        raise ConfigError(problems)
    settings = {name: config.parts.get(name, PartSampling()) for name in names}
    paths = {name: config.path(part) for name, part in settings.items() if part.sampled}
    together: dict[str, int] = {}  # steps of the longest of the parts that begin after the same one
    for name, path in paths.items():
        after = settings[name].after
        together[after] = max(together.get(after, 1), len(path) - 1)
    columns: dict[str, list[float]] = {}

    def column(name: str) -> list[float]:
        """Its levels, from the beginning of the run to its own end."""
        if name not in columns:
            after, path = settings[name].after, paths[name]
            waiting = len(column(after)) - 1 if after in paths else 0
            own, most = len(path) - 1, together[after]
            levels = [path[row * own // most] for row in range(most + 1)]
            ended = levels.index(levels[-1])
            columns[name] = [path[0]] * waiting + levels[: ended + 1]
        return columns[name]

    length = max(len(column(name)) for name in paths)
    filled = [
        column(name) + [column(name)[-1]] * (length - len(column(name))) if name in paths else [1.0] * length
        for name in names
    ]
    rows = [*zip(*filled, strict=True)]
    rows = [rows[0], *(after for before, after in pairwise(rows) if after != before)]
    return LevelSchedule(tuple(rows), tuple(name in paths and not settings[name].stop_at for name in names))


def part_name_problems(config: SamplerConfig, names: Sequence[str]) -> list[str]:
    """What the settings of parts say of parts that there are not, and whether nothing is left to make."""
    found = [
        f"parts.{name}: is not one of {', '.join(names)}.{nearest(name, names)}"
        for name in config.parts
        if name not in names
    ]
    for name, part in config.parts.items():
        if part.after and part.after not in names:
            hint = nearest(part.after, names)
            found.append(f"parts.{name}.after: {part.after!r} is not one of {', '.join(names)}.{hint}")
    if all(name in config.parts and not config.parts[name].sampled for name in names):
        found.append(f"parts: nothing is left to make; absent or omitted: {', '.join(names)}")
    return found
