"""Rotary positions on three axes (t, h, w): RoPE of arXiv 2104.09864, split over axes as in FLUX.

The channels of a head form pairs (i, i + half). Each axis owns a contiguous run of pairs and turns them by
position x theta^(-j / pairs of the axis). Scores then depend on differences of positions alone, per axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXES = 3


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """Even channels per axis (t, h, w) that sum to an even `head_dim`, with h = w: 72 gives (24, 24, 24)."""
    spatial = 2 * round(head_dim / (2 * AXES))
    return head_dim - 2 * spatial, spatial, spatial


def rotation(ids: Tensor, axes: tuple[int, ...], theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tables that `rotate` takes, computed once per forward.

    Args:
        ids: (B or 1, T, 3) integer positions.
        axes: even number of channels per axis; their sum is the head dimension.
        theta: base of the geometric frequencies; 2000 in FLUX.2.
        dtype: of the network. The angles are float32, or float64 in a float64 network: bfloat16 would lose
            whole positions.

    Returns:
        cosine and signed sine, each (B or 1, T, 1, 1, head_dim), to broadcast over (q, k) and heads.
    """
    precision = torch.promote_types(torch.float32, dtype)
    angles = []
    for axis, channels in enumerate(axes):
        pairs = channels // 2
        exponents = torch.arange(pairs, device=ids.device, dtype=precision) / pairs
        angles.append(ids[..., axis, None].to(precision) * theta**-exponents)
    angles = torch.cat(angles, dim=-1)[:, :, None, None, :]  # (B or 1, T, 1, 1, head_dim / 2)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def sincos(ids: Tensor, width: int, theta: float = 100.0) -> Tensor:
    """Absolute positions on the same axes: sines and cosines of position x theta^-(j / pairs of the axis).

    Args:
        ids: (B or 1, N, 3) positions.
        width: channels; those beyond a multiple of 6 are zero.
        theta: base of the frequencies. Small, since grids have tens of places and not thousands.

    Returns:
        (B or 1, N, width) float32.
    """
    pairs = width // (2 * AXES)
    frequencies = theta ** -(torch.arange(pairs, device=ids.device, dtype=torch.float32) / pairs)
    angles = ids[..., None].float() * frequencies  # (B or 1, N, 3, pairs)
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
    return torch.nn.functional.pad(table, (0, width - table.shape[-1]))


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """(B, T, Z, H, head_dim) queries and keys turned by their positions, in the precision of the tables.

    The roll puts each channel's partner in its place, so that one multiply-add over whole rows does the
    rotation; the sign of the lower half sits in the table.
    """
    cosine, signed_sine = tables
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1).to(cosine.dtype), signed_sine)
