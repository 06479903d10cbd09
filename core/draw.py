"""Batches and their noise from tensors at hand: what a training loop of your own needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.errors import ShapeError
from core.keys import generator
from core.noising import NoiseSample, NoisingConfig, draw_levels, stack_levels
from core.sampling.noise import keyed_normals
from core.schedule import TimestepConfig
from core.types import Context, Segment, TokenBatch, map_tensors


def grid_ids(grid: Sequence[int]) -> Tensor:
    """(1, T H W, 3) positions (t, h, w) of the tokens of a grid, the last axis fastest."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], dim=-1)[None]


def token_batch(
    x0: Tensor,
    grid: Sequence[int],
    label: Tensor | None = None,
    tokens: Tensor | None = None,
    valid: Tensor | None = None,
    dropped: Tensor | None = None,
    modality: str = "image",
    keys: Sequence[str] | None = None,
) -> TokenBatch:
    """A batch of samples of one part.

    Args:
        x0: (B, N, C) clean latent tokens, normalized, N = T H W.
        grid: (T, H, W).
        label, tokens, valid, dropped: of the `Context`; None drops no condition.
        keys: names of the samples, by which their noise is drawn; "0", "1", ... unless set.

    Raises ShapeError where the grid does not have N tokens.
    """
    batch, length = x0.shape[:2]
    ids = grid_ids(grid).to(x0.device)
    if ids.shape[1] != length:
        raise ShapeError(f"token_batch: a grid of {tuple(grid)} has {ids.shape[1]} tokens, x0 has {length}")
    if dropped is None:
        dropped = torch.zeros(batch, dtype=torch.bool, device=x0.device)
    names = tuple(map(str, range(batch))) if keys is None else tuple(keys)
    return TokenBatch((Segment(modality, x0.float(), ids),), Context(dropped, label, tokens, valid), names)


def draw(
    batch: TokenBatch,
    noising: NoisingConfig,
    seed: int,
    timestep: TimestepConfig | None = None,
    mask_ratio: float = 0.25,
    conditioning_noise: float = 0.0,
) -> NoiseSample:
    """Noise and noise levels of a batch, a function of (seed, the keys of its samples) alone.

    Args:
        seed: another one for every step, where the keys repeat.
        timestep: p(t); uniform unless set.
        mask_ratio: R_M, the share of tokens that the mask picks.
        conditioning_noise: conditioning tokens have a level drawn uniformly in [0, conditioning_noise].
    """
    timestep = TimestepConfig() if timestep is None else timestep
    noise = tuple(
        part.to(segment.x0) for part, segment in zip(keyed_normals(batch, seed, "noise"), batch.segments, strict=True)
    )
    masks = [segment.conditioning_mask for segment in batch.segments]
    conditioning = None
    if any(mask is not None for mask in masks):
        filled = [
            torch.zeros(segment.x0.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
            for segment, mask in zip(batch.segments, masks, strict=True)
        ]
        conditioning = torch.cat(filled, dim=1)  # (B, L)
    sides = [
        draw_levels(
            noising,
            timestep,
            mask_ratio,
            batch.lengths,
            generator(seed, "levels", key),
            None if conditioning is None else conditioning[row],
            conditioning_noise,
        )
        for row, key in enumerate(batch.keys)
    ]
    student, teacher = (stack_levels(list(side)) for side in zip(*sides, strict=True))
    device = batch.segments[0].x0.device
    return map_tensors(NoiseSample(noise, student, teacher), lambda tensor: tensor.to(device))
