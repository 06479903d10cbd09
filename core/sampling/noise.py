"""What a trunk is given at inference: unit normals keyed by sample, and one noise level for all tokens."""

from __future__ import annotations

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
    device = batch.segments[0].x0.device
    if all(segment.conditioning_mask is None for segment in batch.segments):
        return NoiseLevels(torch.full((batch.size, 1), t, dtype=dtype, device=device))
    values = torch.tensor([t, conditioning_noise], dtype=dtype, device=device).expand(batch.size, -1)
    nothing = torch.zeros(batch.size, max(batch.lengths), dtype=torch.bool, device=device)
    masks = [
        nothing[:, :length] if segment.conditioning_mask is None else segment.conditioning_mask
        for segment, length in zip(batch.segments, batch.lengths, strict=True)
    ]
    return NoiseLevels(values, torch.cat(masks, dim=1).long())
