"""A stream is what a step trains on: a source of records, and the parts that become the segments of a sample.

Most streams have one part. A stream of videos with their audio has two: each has an adapter of its modality, and all
have positions on one axis of time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from core.errors import DataError
from core.modes import ALL_SHARED, Modes
from core.schedule import TimestepConfig
from core.types import Segment
from modalities.base import ModalityAdapter, Record, Source, StoredLatents


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        ids: (N, 3) positions of its tokens.
        weight: factor of its mean velocity error in the loss.
        keep_media: the media travel to the training device, for what is computed from them there.
        pads: its samples may end in padding, and a record that does not say what of it is padding is refused.
        given: in every sample, so that nothing ever makes it.
    """

    adapter: ModalityAdapter
    ids: Tensor
    weight: float = 1.0
    keep_media: bool = False
    pads: bool = False
    given: bool = False


NO_PADDING: Mapping[str, Tensor | None] = MappingProxyType({})
Parts = Mapping[str, Part]  # by name, in the order of the segments


@dataclass(frozen=True)
class Stream:
    """Data of a run and how its samples are noised.

    Attributes:
        modes: how the levels of the parts are drawn, and which tokens are given or absent.
        caption_choice: which of several captions, a name of `CAPTION_CHOICES`; None draws one.
    """

    source: Source
    parts: Parts
    timestep: TimestepConfig
    mask_ratio: float
    modes: Modes = ALL_SHARED
    caption_choice: str | None = None


def make_parts(adapters: Mapping[str, ModalityAdapter], per_second: float | None = None, **more: Mapping) -> Parts:
    """Parts with their positions.

    Args:
        per_second: positions in a second of the common axis of time; None is as many as the part with the most tokens
            in time has. Not looked at for a single part, whose positions are those of its grid.
        more: other fields of `Part`, each {name of the part: value}.
    """
    single = len(adapters) == 1
    positions = (
        {name: adapter.ids() for name, adapter in adapters.items()} if single else _in_time(adapters, per_second)
    )
    return {
        name: Part(adapter, positions[name], **{key: values[name] for key, values in more.items() if name in values})
        for name, adapter in adapters.items()
    }


def _in_time(adapters: Mapping[str, ModalityAdapter], per_second: float | None) -> dict[str, Tensor]:
    """(N, 3) float32: the middle of each token's interval in seconds, times `per_second`, and its place in the image.

    What happens together lies together, as in LTX-2 (arXiv 2601.03233).
    """
    middles = {name: adapter.seconds() for name, adapter in adapters.items()}
    if per_second is None:  # neighbors of the finest part are then 1 apart, as on a grid of their own
        steps = [float(row.diff().min()) for row in middles.values() if len(row) > 1]
        per_second = 1 / min(steps) if steps else 1.0
    found = {}
    for name, adapter in adapters.items():
        ids = adapter.ids()
        time = middles[name][ids[:, 0]] * per_second
        found[name] = torch.stack([time, *ids[:, 1:].unbind(1)], dim=1).to(torch.float32)
    return found


def lengths(parts: Parts) -> tuple[int, ...]:
    """N of each part; their sum is L."""
    return tuple(len(part.ids) for part in parts.values())


def whole_part(parts: Parts, name: str) -> Tensor:
    """(L,) bool: all tokens of one part."""
    return torch.cat([torch.full((len(part.ids),), key == name) for key, part in parts.items()])


def given_tokens(parts: Parts) -> Tensor | None:
    """(L,) bool: the tokens of parts that are given in every sample; None where there are none."""
    given = [whole_part(parts, name) for name, part in parts.items() if part.given]
    return torch.stack(given).any(dim=0) if given else None


def make_segments(
    parts: Parts,
    tokens: Sequence[Tensor],
    conditioning_mask: Tensor | None = None,
    valid: Mapping[str, Tensor | None] = NO_PADDING,
) -> tuple[Segment, ...]:
    """Normalized tokens (B, N, C) of every part as segments.

    Args:
        conditioning_mask: (B, L) bool, tokens that are given.
        valid: part -> (B, N) bool, tokens that are no padding; None, or no entry, where all are real.
    """
    rows = [None] * len(parts) if conditioning_mask is None else conditioning_mask.split(lengths(parts), dim=1)
    return tuple(
        Segment(
            part.adapter.modality,
            x0,
            part.ids[None].to(x0.device),
            valid=_beside(valid.get(name), x0),
            conditioning_mask=row,
            part=name,
            weight=part.weight,
        )
        for (name, part), x0, row in zip(parts.items(), tokens, rows, strict=True)
    )


def _beside(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(tokens.device)


def token_mask(name: str, part: Part, record: Record) -> Tensor | None:
    """(N,) bool, which tokens of a part of a record are no padding; None where the record does not say.

    Raises DataError where it must say, and for a mask that does not fit.
    """
    own = record.part(name)
    if isinstance(own.media, StoredLatents):
        found = own.media.valid
    elif own.valid is None:
        found = None
    else:
        try:
            found = part.adapter.valid_tokens(own.valid)
        except DataError as error:
            raise DataError(f"{record.origin}: {name}: {error}") from error
    if found is None and part.pads:
        raise DataError(
            f"{record.origin}: {name}: no mask says what of it is padding, and without one padding would be learned; "
            "robot data come with one (kind: rlds or lerobot, or latents of these)"
        )
    return found


def stack_masks(rows: Sequence[Tensor | None], tokens: int) -> Tensor | None:
    """Masks (N,) of B samples -> (B, N); None where no sample has any. A sample without one is all real."""
    if all(row is None for row in rows):
        return None
    return torch.stack([torch.ones(tokens, dtype=torch.bool) if row is None else row for row in rows])
