"""The parts of the DDT trunk (core/trunk/ddt.py): blocks, output layer, embeddings of tokens and time, rotary table."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.trunk.attention import attend
from core.trunk.class_conditional import MLP
from core.trunk.layers import Gate, plain_norm
from core.trunk.modulation import TokenRows, gated_add, modulate

Rotation = tuple[Tensor, Tensor]  # cosine and signed sine, (B or 1, L, 1, head_dim) each
_THETA = 10_000.0


class Condition(NamedTuple):
    """What tokens are modulated by.

    Attributes:
        values: (B, K, D) rows for the levels of a sample, or (B, L, D), one for each token; after the SiLU that adaLN
            layers begin with, which all blocks share.
        rows: which of K rows each token has; None when all have the first.
        per_token: there is one row for each token, in their order.
    """

    values: Tensor
    rows: TokenRows | None
    per_token: bool = False

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x (1 + scale) + shift, each token with its row: (B, L, D)."""
        if self.per_token:  # 1 + scale would be one more tensor of all tokens to keep for the backward pass
            return torch.addcmul(x + shift, x, scale)
        return modulate(x, shift, 1 + scale, self.rows)

    def gated_add(self, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        """x + gate y, each token with its row: (B, L, D)."""
        return torch.addcmul(x, gate, y) if self.per_token else gated_add(x, gate, y, self.rows)


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale, eps 1e-6."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # Of one dtype, or the fused kernel is not used.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=1e-6)


class PlainNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return plain_norm(x)


class Attention(nn.Module):
    """Self-attention with biases, rotary positions and, with `qk_norm`, norms of queries and keys."""

    def __init__(self, width: int, heads: int, rmsnorm: bool, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        norm = (RMSNorm if rmsnorm else nn.LayerNorm) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(width // heads), norm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rotation: Rotation, groups: tuple[int, ...] | None, key_mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, H, head_dim) each
        # Rotated in the precision of the tables, then back to the dtype of the values.
        q, k = (rotate_pairs(part, rotation).to(v.dtype) for part in (self.q_norm(q), self.k_norm(k)))
        return self.proj(attend(q, k, v, key_mask, groups=groups))


class SwiGLU(nn.Module):
    """Like core/trunk/layers.py's, with biases and under the published names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.gate = Gate()
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.gate(self.w12(x)))


def _adaln(width: int, parts: int) -> nn.ModuleDict:
    """The linear layer of an adaLN under its published name; its SiLU is in `Condition.values`."""
    return nn.ModuleDict({"1": nn.Linear(width, parts * width)})


class Block(nn.Module):
    """adaLN-Zero transformer block of encoder and head alike (LightningDiT, arXiv 2501.01423)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, swiglu: bool, rmsnorm: bool, qk_norm: bool):
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(width) if rmsnorm else PlainNorm() for _ in range(2))
        self.attn = Attention(width, heads, rmsnorm, qk_norm)
        hidden = int(mlp_ratio * width)
        self.mlp = SwiGLU(width, int(2 / 3 * hidden)) if swiglu else MLP(width, hidden)
        self.adaLN_modulation = _adaln(width, parts=6)

    def forward(
        self,
        x: Tensor,
        condition: Condition,
        rotation: Rotation,
        groups: tuple[int, ...] | None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), what modulates it, positions, runs of tokens that attend within, (B, L) bool tokens that may be
        looked at -> (B, L, D)."""
        parts = self.adaLN_modulation["1"](condition.values).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        attended = self.attn(condition.modulate(self.norm1(x), shift1, scale1), rotation, groups, key_mask)
        x = condition.gated_add(x, gate1, attended)
        return condition.gated_add(x, gate2, self.mlp(condition.modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, rmsnorm: bool):
        super().__init__()
        self.norm_final = RMSNorm(width) if rmsnorm else PlainNorm()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = _adaln(width, parts=2)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """x (B, L, D), what modulates it -> (B, L, out)."""
        shift, scale = self.adaLN_modulation["1"](condition.values).chunk(2, dim=-1)
        return self.linear(condition.modulate(self.norm_final(x), shift, scale))


class Pointwise(nn.Linear):
    """A linear layer kept as the 1x1 convolution, (D, C, 1, 1), that it is in the published weights."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, width)
        self.weight = nn.Parameter(self.weight.detach()[..., None, None])

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class TokenEmbed(nn.Module):
    """(B, N, C) -> (B, N, D)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.proj = Pointwise(channels, width)

    def forward(self, tokens: Tensor) -> Tensor:
        dtype = self.proj.weight.dtype
        # Under autocast the product is of half precision, but the sum that the blocks add up is not.
        return self.proj(tokens.to(dtype)).to(dtype)


class FourierTime(nn.Module):
    """(B, K) levels -> (B, K, D): sines and cosines of random frequencies W ~ N(0, 1), drawn once, and an MLP."""

    W: Tensor

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.register_buffer("W", torch.empty(frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, levels: Tensor) -> Tensor:
        precision = torch.promote_types(torch.float32, self.W.dtype)
        angles = levels.to(precision)[..., None] * self.W.to(precision) * (2 * math.pi)
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp(features.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


class RotaryTable(nn.Module):
    """Cosines and sines of row h * grid + w: the first half of a head's channels turns with h, the second with w.

    Neighboring channels (2i, 2i + 1) form a pair, unlike in core/trunk/rope.py, and have equal entries.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, grid: int):
        super().__init__()
        self.grid = grid
        self.register_buffer("freqs_cos", torch.empty(grid**2, head_dim))
        self.register_buffer("freqs_sin", torch.empty(grid**2, head_dim))

    @torch.no_grad()
    def reset(self) -> None:
        grid, half = self.grid, self.freqs_cos.shape[1] // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float32) / half
        angles = torch.arange(grid)[:, None] * (1 / _THETA**exponents)  # (grid, head_dim / 4)
        angles = angles.repeat_interleave(2, dim=-1)  # (grid, head_dim / 2)
        angles = torch.cat([angles.repeat_interleave(grid, dim=0), angles.repeat(grid, 1)], dim=-1)
        self.freqs_cos.copy_(angles.cos())
        self.freqs_sin.copy_(angles.sin())

    def forward(self, places: Tensor) -> Rotation:
        """(B or 1, L) rows -> the tables that `rotate_pairs` takes."""
        cosine, sine = F.embedding(places, self.freqs_cos), F.embedding(places, self.freqs_sin)
        signed_sine = sine.unflatten(-1, (-1, 2)) * sine.new_tensor([-1.0, 1.0])
        return cosine[:, :, None], signed_sine.flatten(-2)[:, :, None]


def rotate_pairs(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, L, H, head_dim) with each pair of channels turned: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cosine, signed_sine = rotation
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cosine, swapped.to(cosine.dtype), signed_sine)
