"""Noisy inputs of held-out samples, the same for any batch size, device count or padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import DataError, ShapeError
from core.keys import generator
from core.objective import noised
from core.types import NoiseLevels, Segment, TokenBatch


class NoisyInputs(NamedTuple):
    """noisy and noise: one (B, N, C) per segment."""

    noisy: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]
    levels: NoiseLevels


def noisy_inputs(batch: TokenBatch, time: float, seed: int, index: int = 0) -> NoisyInputs:
    """Every token at level `time`, as at inference; given tokens clean, since they are the condition.

    Args:
        time: in [0, 1], 0 is data.
        index: of the time in a grid; another index draws other noise.

    Raises:
        ShapeError: the batch has no keys.
        DataError: a time outside [0, 1].
    """
    if not 0 <= time <= 1:
        raise DataError(f"time {time} must lie in [0, 1]; 0 is data, 1 is noise")
    if not batch.keys:
        raise ShapeError("TokenBatch.keys: empty; noise is drawn by the key of each sample")
    noise = tuple(_noise(batch, place, segment, seed, index) for place, segment in enumerate(batch.segments))
    levels = _levels(batch, time)
    return NoisyInputs(noised(batch, noise, levels), noise, levels)


def _noise(batch: TokenBatch, place: int, segment: Segment, seed: int, index: int) -> Tensor:
    """(B, N, C) unit normals at the real tokens and 0 at padding, so that its amount changes no draw."""
    _, tokens, channels = segment.x0.shape
    rows = torch.zeros(segment.x0.shape)
    valid = torch.ones(batch.size, tokens, dtype=torch.bool) if segment.valid is None else segment.valid.cpu()
    for row, real, key in zip(rows, valid, batch.keys, strict=True):
        draw = generator(seed, "evaluation", key, index, place, segment.modality)
        row[real] = torch.randn(int(real.sum()), channels, generator=draw)
    return rows.to(segment.x0)


def _levels(batch: TokenBatch, time: float) -> NoiseLevels:
    device = batch.context.dropped.device
    if all(segment.given is None for segment in batch.segments):
        return NoiseLevels(torch.full((batch.size, 1), time, device=device))
    values = torch.tensor([time, 0.0], device=device).expand(batch.size, 2)
    given = [
        torch.zeros(segment.x0.shape[:2], dtype=torch.bool, device=device) if segment.given is None else segment.given
        for segment in batch.segments
    ]
    return NoiseLevels(values, torch.cat(given, dim=1).long())
