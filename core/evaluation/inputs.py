"""Noisy inputs of held-out samples, the same for any batch size, device count or padding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from core.errors import DataError
from core.objective import noised
from core.sampling.noise import keyed_normals, one_level
from core.types import NoiseLevels, TokenBatch


class NoisyInputs(NamedTuple):
    """noisy and noise: one (B, N, C) per segment."""

    noisy: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]
    levels: NoiseLevels


def noisy_inputs(batch: TokenBatch, timestep: float, seed: int, index: int = 0) -> NoisyInputs:
    """Every token at level `timestep`, as at inference; given tokens clean, since they are the condition.

    Args:
        timestep: in [0, 1], 0 is data.
        index: of the timestep in a grid; another index draws other noise.

    Raises:
        ShapeError: the batch has no keys.
        DataError: a timestep outside [0, 1].
    """
    if not 0 <= timestep <= 1:
        raise DataError(f"timestep {timestep} must lie in [0, 1]; 0 is data, 1 is noise")
    noise, levels = keyed_noise(batch, seed, index), one_level(batch, timestep)
    return NoisyInputs(noised(batch, noise, levels), noise, levels)


def keyed_noise(batch: TokenBatch, seed: int, index: int = 0) -> tuple[Tensor, ...]:
    """(B, N, C) per segment, keyed by (seed, sample key, index). Raises ShapeError where the batch has no keys."""
    drawn = keyed_normals(batch, seed, "evaluation", index)
    return tuple(part.to(segment.x0) for part, segment in zip(drawn, batch.segments, strict=True))
