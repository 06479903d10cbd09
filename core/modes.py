"""How the parts of a sample are trained: at levels of one draw or of several, and which of them are given or absent.

The mode of a sample is drawn from a small table of shares. What is given has one small level, and what is absent has
level 1, pure noise; neither carries loss. So one model learns to make every part with or without every other; how it
is then sampled is up to core/sampling/parts.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from core.errors import ConfigError
from core.noising import NoisingConfig, SampleLevels, draw_levels
from core.schedule import TimestepConfig

# X-WAM (arXiv 2604.26694) has its video noisier than its actions by Beta(1.5, 1) of what is left to pure noise.
LAG = 1.5


@dataclass(frozen=True)
class Mode:
    """One way to noise a sample.

    Attributes:
        given, absent: (L,) bool, tokens without loss; absent ones are not given, too. None is no token.
        independent: every part has a draw of its own; otherwise one draw, with one mask, is over all tokens.
        leads: places of two parts, the first of which is ahead on its way to data. It has one draw with all parts but
            the second, whose levels are t + (1 - t) b for each t of that draw, with b from Beta(1.5, 1).
        own_timestep: a part that is drawn alone has its own p(t), where it has one.
    """

    given: Tensor | None = None
    absent: Tensor | None = None
    independent: bool = False
    leads: tuple[int, int] | None = None
    own_timestep: bool = True

    def conditioning_mask(self, length: int) -> Tensor:
        """(L,) bool, tokens without loss."""
        held = torch.zeros(length, dtype=torch.bool)
        for mask in (self.given, self.absent):
            held = held if mask is None else held | mask
        return held


SHARED = Mode(own_timestep=False)


@dataclass(frozen=True)
class Modes:
    """
    Attributes:
        table: name -> (share of the samples, mode); what is missing to 1 is `rest`.
        noise: of every part, its given tokens have a level uniform in [0, noise]; empty is 0 for all.
        timesteps: p(t) of every part that has its own; empty means no part has.

    Raises ConfigError for shares beyond 1, and where a mode leaves no token that carries loss.
    """

    table: Mapping[str, tuple[float, Mode]] = field(default_factory=dict)
    rest: Mode = SHARED
    noise: tuple[float, ...] = ()
    timesteps: tuple[TimestepConfig | None, ...] = ()

    def __post_init__(self):
        total = sum(share for share, _ in self.table.values())
        if total > 1 + 1e-6:
            raise ConfigError(f"modes: the shares sum to {total:g}, at most 1 is possible")
        named = {f"modes.{name}": mode for name, (_, mode) in self.table.items()}
        if total < 1 - 1e-6:
            named["modes.shared"] = self.rest
        for name, mode in named.items():
            masks = [mask for mask in (mode.given, mode.absent) if mask is not None]
            if masks and bool(torch.stack(masks).any(dim=0).all()):
                raise ConfigError(
                    f"{name}: every token of a sample is given or absent, so that nothing is left to learn"
                )

    @property
    def all(self) -> list[Mode]:
        return [self.rest, *(mode for _, mode in self.table.values())]

    def conditions(self) -> bool:
        """Whether any sample has tokens without loss."""
        return any(mode.given is not None or mode.absent is not None for mode in self.all)

    def draw(self, generator: torch.Generator) -> Mode:
        """The mode of one sample; nothing is drawn where there is only one."""
        if not self.table:
            return self.rest
        place, reached = float(torch.rand((), generator=generator)), 0.0
        for share, mode in self.table.values():
            reached += share
            if place < reached:
                return mode
        return self.rest


ALL_SHARED = Modes()


@dataclass(frozen=True)
class _Piece:
    """Levels (K,) of some tokens of a sample, (L,) bool, and which of them each of these has; None for the first."""

    tokens: Tensor
    values: Tensor
    index: Tensor | None = None


def draw_mode_levels(
    config: NoisingConfig,
    timestep: TimestepConfig,
    mask_ratio: float,
    lengths: Sequence[int],
    generator: torch.Generator,
    modes: Modes = ALL_SHARED,
    mode: Mode | None = None,
) -> tuple[SampleLevels, SampleLevels]:
    """Student and teacher levels of one sample; as many of each as the samples of any other mode have.

    Args:
        timestep: p(t), of all parts that have none of their own.
        mask_ratio: R_M, share of tokens that the mask picks.
        lengths: tokens of each part; their sum is L.
        mode: that of the sample, one of `modes`; `modes.rest` unless set.

    Raises:
        ConfigError: a mode that attention separation, or the kind of noising, cannot have.
    """
    mode = modes.rest if mode is None else mode
    if not modes.conditions() and all(not other.independent and other.leads is None for other in modes.all):
        return draw_levels(config, timestep, mask_ratio, lengths, generator)
    if config.separates():
        raise ConfigError("noising.attention_separation: tokens of other modes belong to no group; only with shared")
    parts, timestep = _parts(lengths), timestep.at(sum(lengths))
    student, teacher = [], []
    for group in _groups(mode, parts):
        tokens = _union(parts, group)
        own = (_own_timestep(modes, mode, parts, group) or timestep).at(sum(lengths))
        drawn = draw_levels(config, own, mask_ratio, [int(tokens.sum())], generator)
        for side, levels in zip((student, teacher), drawn, strict=True):
            side.append(_Piece(tokens, levels.values, levels.index))
    if mode.leads is not None:
        tokens = parts[mode.leads[1]]
        levels = config.student_levels(timestep, mask_ratio, int(tokens.sum()), generator)
        if levels.values.shape != student[0].values.shape:
            raise ConfigError(f"noising.kind: {config.kind!r} has no level that one part could have from another")
        levels = replace(levels, values=_lagging(student[0].values, generator))
        cleaner = config.teacher_levels(levels, generator)
        student.append(_Piece(tokens, levels.values, levels.index))
        teacher.append(_Piece(tokens, cleaner.values, cleaner.index))
    held = _held(modes, mode, parts, generator)
    most = [max(counts) for counts in zip(*(_counts(config, other, parts) for other in modes.all), strict=True)]
    return _assembled([*student, *held], most[0]), _assembled([*teacher, *held], most[1])


def _parts(lengths: Sequence[int]) -> list[Tensor]:
    """(L,) bool for each part: its tokens."""
    place = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return [place == part for part in range(len(lengths))]


def _union(parts: list[Tensor], group: Sequence[int]) -> Tensor:
    return torch.stack([parts[place] for place in group]).any(dim=0)


def _free(mode: Mode, parts: list[Tensor]) -> list[int]:
    """Places of the parts that have a token with loss."""
    held = mode.conditioning_mask(len(parts[0]))
    return [place for place, tokens in enumerate(parts) if not bool(held[tokens].all())]


def _groups(mode: Mode, parts: list[Tensor]) -> list[list[int]]:
    """Places of the parts that share a draw. What is given or absent may be among them; it gets its own level later."""
    if mode.independent:
        return [[place] for place in _free(mode, parts)]
    lags = None if mode.leads is None else mode.leads[1]
    return [[place for place in range(len(parts)) if place != lags]]


def _own_timestep(modes: Modes, mode: Mode, parts: list[Tensor], group: list[int]) -> TimestepConfig | None:
    """p(t) of a part that is drawn alone."""
    free = [place for place in group if place in _free(mode, parts)]
    return modes.timesteps[free[0]] if mode.own_timestep and modes.timesteps and len(free) == 1 else None


def _lagging(values: Tensor, generator: torch.Generator) -> Tensor:
    """Noisier levels than these, all of them by the same share b of what is left to 1."""
    b = torch.rand(1, generator=generator) ** (1 / LAG)  # the quantiles of Beta(1.5, 1), whose distribution is b^1.5
    return values + (1 - values) * b


def _held(modes: Modes, mode: Mode, parts: list[Tensor], generator: torch.Generator) -> list[_Piece]:
    """Given tokens, part by part, and absent ones: the same levels for student and teacher."""
    found = []
    for place, tokens in _given(mode, parts):
        noise = modes.noise[place] if modes.noise else 0.0
        found.append(_Piece(tokens, torch.rand(1, generator=generator) * noise))
    if mode.absent is not None:
        found.append(_Piece(mode.absent, torch.ones(1)))
    return found


def _given(mode: Mode, parts: list[Tensor]) -> list[tuple[int, Tensor]]:
    """(place, (L,) bool) of the parts that have given tokens."""
    found = [] if mode.given is None else [(place, mode.given & tokens) for place, tokens in enumerate(parts)]
    return [(place, tokens) for place, tokens in found if bool(tokens.any())]


def _counts(config: NoisingConfig, mode: Mode, parts: list[Tensor]) -> tuple[int, int]:
    """Levels of a sample of this mode: of the student, and of the teacher."""
    groups = _groups(mode, parts) + ([] if mode.leads is None else [[mode.leads[1]]])
    lengths = [int(_union(parts, group).sum()) for group in groups]
    drawn = [(config.student_count(length), config.teacher_count(length)) for length in lengths]
    held = len(_given(mode, parts)) + (mode.absent is not None)
    student, teacher = (sum(side) + held for side in zip(*drawn, strict=True))
    return student, teacher


def _assembled(pieces: list[_Piece], count: int) -> SampleLevels:
    """`count` levels, the last of which may be of no token; later pieces replace earlier ones."""
    index = torch.zeros(len(pieces[0].tokens), dtype=torch.long)
    values = torch.zeros(count)
    first = 0
    for piece in pieces:
        index[piece.tokens] = first if piece.index is None else first + piece.index
        values[first : first + len(piece.values)] = piece.values
        first += len(piece.values)
    return SampleLevels(values, index)
