"""What a trunk is given at inference: unit normals keyed by sample, and one noise level for the tokens of each part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import ShapeError
from core.keys import generator
from core.types import NoiseLevels, TokenBatch


def keyed_normals(batch: TokenBatch, seed: int, purpose: str, *more: int) -> tuple[Tensor, ...]:
    """One (B, N, C) float32 per segment, on the CPU: unit normals at the real tokens, 0 at padding.

    Those of a sample depend on seed, purpose (and `more` of it), the sample's key and the segment's place alone, and
    not on the batch or on the amount of padding. Raises ShapeError where the batch has no keys.
    """
    if not batch.keys:
        raise ShapeError("TokenBatch.keys: empty; random numbers are drawn by the key of each sample")
    parts = []
    for place, segment in enumerate(batch.segments):
        part = torch.zeros(segment.x0.shape)
        for index, key in enumerate(batch.keys):
            draw = generator(seed, purpose, key, *more, place, segment.modality)
            real = slice(None) if segment.valid is None else segment.valid[index].cpu()
            part[index, real] = torch.randn(part[index, real].shape, generator=draw)
        parts.append(part)
    return tuple(parts)


def one_level(
    batch: TokenBatch, t: float, conditioning_noise: float = 0.0, dtype: torch.dtype = torch.float32
) -> NoiseLevels:
    """Every token at `t`; conditioning tokens at the level `conditioning_noise`."""
    parts = len(batch.segments)
    return part_levels(batch, (t,) * parts, (conditioning_noise,) * parts, dtype)


def part_levels(
    batch: TokenBatch,
    free: Sequence[float | None],
    conditioning: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> NoiseLevels:
    """Every token at the level of its part.

    Args:
        free: one for each part; None for a part all of whose tokens are conditioning.
        conditioning: that of the conditioning tokens of each part.
    """
    device = batch.segments[0].x0.device
    masks = [segment.conditioning_mask for segment in batch.segments]
    ts = list(dict.fromkeys(t for t in free if t is not None))
    held = list(dict.fromkeys(t for t, mask in zip(conditioning, masks, strict=True) if mask is not None))
    if len(ts) == 1 and not held:
        return NoiseLevels(torch.full((batch.size, 1), ts[0], dtype=dtype, device=device))
    values = torch.tensor([*ts, *held], dtype=dtype, device=device).expand(batch.size, -1)
    rows = []
    for length, mask, t, level in zip(batch.lengths, masks, free, conditioning, strict=True):
        row = torch.full((batch.size, length), 0 if t is None else ts.index(t), device=device)
        rows.append(row if mask is None else row.masked_fill(mask, len(ts) + held.index(level)))
    return NoiseLevels(values, torch.cat(rows, dim=1))
