"""The blocks of the FLUX.2-style trunk: shared modulation, double blocks and single blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.trunk import rope
from core.trunk.attention import QKNorm, attend
from core.trunk.layers import Gate, SwiGLU, plain_norm
from core.trunk.modulation import TokenRows, gated_add, modulate


class Modulation(nn.Module):
    """adaLN: (B, K, D) time rows -> (shift, 1 + scale, gate) per group, (B, K, D) each.

    The 1 is added here, to K rows, instead of in every block to every token.
    """

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.silu = nn.SiLU()
        self.linear = nn.Linear(width, groups * 3 * width, bias=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts = list(self.linear(self.silu(rows)).chunk(3 * self.groups, dim=-1))
        parts[1::3] = [1 + scale for scale in parts[1::3]]
        return tuple(parts)


class Modulated(NamedTuple):
    """Modulation of one sequence: shift, 1 + scale and gate of every group, (B, K, D) each; and each token's row."""

    parts: tuple[Tensor, ...]
    rows: TokenRows | None


class Layout(NamedTuple):
    """Where text and media stand in the joint sequence: [text, media], once for each group of media tokens.

    Groups attend within themselves (core/trunk/separation.py), so each has text of its own. There is one group
    unless attention is separated.
    """

    text: int  # tokens of one copy of the text
    media: tuple[int, ...]  # media tokens of each group

    def copies(self, text: Tensor) -> Tensor:
        """(B, S, ...) -> (B, S of all groups, ...)."""
        return text if len(self.media) == 1 else torch.cat([text] * len(self.media), dim=1)

    def text_group(self, device: torch.device) -> Tensor:
        """(S of all groups,): the group of each text token."""
        return torch.arange(len(self.media), device=device).repeat_interleave(self.text)

    def join(self, text: Tensor, media: Tensor) -> Tensor:
        """Text of all groups and media -> the joint sequence."""
        if len(self.media) == 1:  # splitting off one part would copy it in the backward pass
            return torch.cat([text, media], dim=1)
        pairs = zip(text.split(self.text, dim=1), media.split(list(self.media), dim=1), strict=True)
        return torch.cat([part for pair in pairs for part in pair], dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join`."""
        parts = tokens.split([size for group in self.media for size in (self.text, group)], dim=1)
        if len(self.media) == 1:
            return parts[0], parts[1]
        return torch.cat(parts[::2], dim=1), torch.cat(parts[1::2], dim=1)

    def groups(self) -> tuple[int, ...] | None:
        """Runs of the joint sequence that attend within themselves, None when that is all of it."""
        return None if len(self.media) == 1 else tuple(self.text + group for group in self.media)


class Joint(NamedTuple):
    """What the attention of every block needs: rotary tables, which of the S + L tokens may be looked at, layout."""

    rotation: tuple[Tensor, Tensor]
    key_mask: Tensor | None
    heads: int
    backend: str
    layout: Layout


def _rotated(norm: nn.Module, qk: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Normed and turned by their positions, (B, T, 2, H, head_dim) each.

    In float32 (bfloat16 angles would blur positions), then back to the dtype of the values.
    """
    if isinstance(norm, QKNorm):
        return rope.normed_rotation(qk, norm.scale, norm.eps, tables).to(qk.dtype)
    return rope.rotate(qk, tables).to(qk.dtype)


def _attend(qk: Tensor, v: Tensor, joint: Joint) -> Tensor:
    """qk (B, T, 2, H, head_dim), v (B, T, 1, H, head_dim) -> (B, T, D)."""
    q, k = qk.unbind(2)
    return attend(q, k, v.squeeze(2), joint.key_mask, joint.backend, joint.layout.groups())


class Stream(nn.Module):
    """One half of a double block: the layers that text, or media, has for itself."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool, qk_norm: bool):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width, hidden)

    def project(
        self, x: Tensor, modulation: Modulated, heads: int, tables: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> normed and turned queries and keys (B, N, 2, H, head_dim), values (B, N, 1, H, head_dim)."""
        shift, scale, *_ = modulation.parts
        qkv = self.qkv(modulate(plain_norm(x), shift, scale, modulation.rows)).unflatten(-1, (3, heads, -1))
        qk, v = qkv.split([2, 1], dim=2)
        return _rotated(self.norm, qk, tables), v

    def finish(self, x: Tensor, attended: Tensor, modulation: Modulated) -> Tensor:
        """Residual updates of (B, N, D) by what was attended to and by the MLP."""
        (_, _, gate, shift2, scale2, gate2), rows = modulation
        x = gated_add(x, gate, self.attention_out(attended), rows)
        return gated_add(x, gate2, self.mlp(modulate(plain_norm(x), shift2, scale2, rows)), rows)


class DoubleBlock(nn.Module):
    """Text and media with their own weights and one joint attention."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool, qk_norm: bool):
        super().__init__()
        self.text = Stream(width, heads, hidden, qkv_bias, qk_norm)
        self.media = Stream(width, heads, hidden, qkv_bias, qk_norm)

    def forward(
        self, text: Tensor, media: Tensor, text_mod: Modulated, media_mod: Modulated, joint: Joint
    ) -> tuple[Tensor, Tensor]:
        """text (B, S, D), media (B, L, D), six parts of modulation each -> the same two."""
        layout = joint.layout
        (text_cosine, media_cosine), (text_sine, media_sine) = (layout.split(table) for table in joint.rotation)
        text_qk, text_v = self.text.project(text, text_mod, joint.heads, (text_cosine, text_sine))
        media_qk, media_v = self.media.project(media, media_mod, joint.heads, (media_cosine, media_sine))
        attended = _attend(layout.join(text_qk, media_qk), layout.join(text_v, media_v), joint)
        for_text, for_media = layout.split(attended)
        return self.text.finish(text, for_text, text_mod), self.media.finish(media, for_media, media_mod)


class SingleBlock(nn.Module):
    """Attention and MLP side by side on one sequence, each pair of linear layers fused into one (FLUX.2)."""

    def __init__(self, width: int, heads: int, hidden: int, qkv_bias: bool, qk_norm: bool):
        super().__init__()
        self.parts = [2 * width, width, 2 * hidden]  # queries and keys, values, the two halves of the SwiGLU
        self.linear1 = nn.Linear(width, sum(self.parts), bias=False)
        self.qkv_bias = nn.Parameter(torch.zeros(3 * width)) if qkv_bias else None
        self.norm = QKNorm(width // heads) if qk_norm else nn.Identity()
        self.gate = Gate()
        self.linear2 = nn.Linear(width + hidden, width, bias=False)

    def forward(self, x: Tensor, modulation: Modulated, joint: Joint) -> Tensor:
        """(B, S + L, D), three parts of modulation -> (B, S + L, D)."""
        (shift, scale, gate), rows = modulation
        # One split for everything: its backward is one concatenation, a costly copy at this width.
        qk, v, mlp = self.linear1(modulate(plain_norm(x), shift, scale, rows)).split(self.parts, dim=-1)
        if self.qkv_bias is not None:
            qk_bias, v_bias = self.qkv_bias.to(qk.dtype).split(self.parts[:2])
            qk, v = qk + qk_bias, v + v_bias
        qk, v = qk.unflatten(-1, (2, joint.heads, -1)), v.unflatten(-1, (1, joint.heads, -1))
        attended = _attend(_rotated(self.norm, qk, joint.rotation), v, joint)
        hidden = torch.cat([attended, self.gate(mlp)], dim=-1)
        return gated_add(x, gate, self.linear2(hidden), rows)
