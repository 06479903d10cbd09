"""Rotary positions on three axes (t, h, w): RoPE of arXiv 2104.09864, split over axes as in FLUX.

The channels of a head form pairs (i, i + half). Each axis owns a contiguous run of pairs and turns them by
position x theta^(-j / pairs of the axis). Scores then depend on differences of positions alone, per axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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


def normed_rotation(x: Tensor, scale: Tensor, eps: float, tables: tuple[Tensor, Tensor]) -> Tensor:
    """`rotate` of queries and keys that are divided by their root mean square over a head and scaled, in fewer passes.

    The scale is multiplied into the tables, which all heads share, and the norm is divided out at the end. Of x alone
    the backward pass needs a tensor of its size.

    Args:
        x: (B, T, 2, H, head_dim).
        scale: (2 head_dim,), of queries, then of keys.
    """
    return _NormedRotation.apply(x, scale, eps, *tables)[0]


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _NormedRotation(torch.autograd.Function):
    """y = r R x, with r = (mean of x^2 + eps)^-1/2 and R the rotation of scaled channels."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, eps: float, cosine: Tensor, signed_sine: Tensor) -> tuple[Tensor, Tensor]:
        half, scales = x.shape[-1] // 2, scale.view(2, 1, -1)
        x = x.to(cosine.dtype)
        factor = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()
        turned = (x * (cosine * scales)).addcmul_(x.roll(half, dims=-1), signed_sine * scales.roll(half, dims=-1))
        return turned.mul_(factor), factor

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, scale, _, *tables = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, scale, *tables, output[1])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - there is one gradient, of the rotated
        ctx: _Context, gradient: Tensor, _factor: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, scale, cosine, signed_sine, factor = ctx.saved_tensors
        half, scales = x.shape[-1] // 2, scale.view(2, 1, -1)
        wide, gradient = x.to(cosine.dtype), gradient * factor
        back = (gradient * cosine).add_((gradient * signed_sine).roll(half, dims=-1))  # turned back, without the scale
        shares = wide * back
        for_scale = shares.sum(dim=(0, 1, 3)).flatten().to(scale.dtype)
        for_factor = (shares * scales).sum(dim=-1, keepdim=True) * factor.square() / -x.shape[-1]
        return (back * scales).addcmul_(wide, for_factor).to(x.dtype), for_scale, None, None, None
