"""Wan 2.2 TI2V-5B (Wan-AI, Apache-2.0): self-attention over video tokens, cross-attention to text, adaLN by token.

The published network modulates every token with a row of its own: 6 x width numbers a token that all blocks keep. Here
rows are computed for the K distinct levels of a sample and looked up by its tokens, with the same result. Text is not
modulated, and all of its rows are attended to. Files: core/trunk/foreign/wan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ConfigError, ShapeError, choose, nearest
from core.trunk import rope
from core.trunk.attention import attend, attention_problem, real_keys
from core.trunk.context import published_rows
from core.trunk.features import Features
from core.trunk.layers import TimestepEmbedder, initialize, plain_norm
from core.trunk.modulation import TokenRows, gated_add, modulate, token_rows
from core.trunk.projectors import ProjectorSpec, build_projectors
from core.trunk.recompute import run_block
from core.trunk.separation import TokenOrder, token_order
from core.types import FeatureLayers, NoiseLevels, TokenBatch, TrunkOutput

EPS = 1e-6
THETA = 10_000.0  # of the rotary frequencies
TIME_SCALE = 1000.0


class WanSize(NamedTuple):
    width: int
    heads: int
    depth: int
    hidden: int


SIZES = {"ti2v_5b": WanSize(3072, 24, 30, 14336)}  # wan/configs/wan_ti2v_5B.py, 5.00 billion parameters


@dataclass
class WanSettings:
    """What an experiment chooses of the trunk.

    Attributes:
        size: a name of `SIZES`; width, heads, depth and hidden (of the MLP) override it one by one.
        text_rows: S, rows of text that every sample has.
        attention: sdpa or xformers.
    """

    size: str = "ti2v_5b"
    width: int | None = None
    heads: int | None = None
    depth: int | None = None
    hidden: int | None = None
    text_rows: int = 512
    attention: str = "sdpa"

    def shape(self) -> WanSize:
        """The size with its overrides."""
        preset = choose("size", self.size, SIZES)
        chosen = {name: getattr(self, name) for name in WanSize._fields}
        return preset._replace(**{name: value for name, value in chosen.items() if value is not None})

    def problems(self) -> list[str]:
        if self.size not in SIZES:
            return [f"size: {self.size!r} is not one of {', '.join(SIZES)}.{nearest(self.size, SIZES)}"]
        counts = self.shape()._asdict() | {"text_rows": self.text_rows}
        found = [f"{name}: {value} must be at least 1" for name, value in counts.items() if value < 1]
        shape = self.shape()
        if not found and shape.width % shape.heads:
            found.append(f"width: {shape.width} is not a multiple of heads, {shape.heads}")
        elif not found and ((head := shape.width // shape.heads) % 2 or head < 2 * rope.AXES):
            found.append(f"heads: {shape.heads} gives heads of {head} channels; needed is an even number from 6")
        if problem := attention_problem(self.attention):
            found.append(f"attention: {problem}")
        return found


@dataclass
class WanConfig(WanSettings):
    """The settings, and what follows from the rest of a run.

    Attributes:
        channels: C of each modality, {modality: C}; 192 for video as published, 2 x 2 cells of 48 latent channels.
        text_width: Dc, channels of the text encoder's features.
    """

    channels: dict[str, int] = field(default_factory=dict)
    text_width: int = 4096

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.channels:
            found.append("channels: empty; name the latent channels of at least one modality, {modality: C}")
        if self.text_width < 1:
            found.append(f"text_width: {self.text_width} must be at least 1")
        return found


class Positions(NamedTuple):
    """What self-attention needs: rotary tables, which of the L tokens may be looked at, groups that attend within."""

    rotation: tuple[Tensor, Tensor]
    key_mask: Tensor | None
    groups: tuple[int, ...] | None


class WideNorm(nn.Module):
    """RMSNorm of queries or keys over all heads together."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * self.scale


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, backend: str):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q, self.norm_k = WideNorm(width), WideNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, L, D) each
        qk = torch.stack([self.norm_q(q), self.norm_k(k)], dim=2).unflatten(-1, (self.heads, -1))
        q, k = rope.rotate(qk, positions.rotation).to(v.dtype).unbind(2)  # (B, L, H, head_dim)
        v = v.unflatten(-1, (self.heads, -1))
        return self.out(attend(q, k, v, positions.key_mask, self.backend, positions.groups))


class CrossAttention(nn.Module):
    """To text, without positions and without a mask."""

    def __init__(self, width: int, heads: int, backend: str):
        super().__init__()
        self.heads, self.backend = heads, backend
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm_q, self.norm_k = WideNorm(width), WideNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x (B, L, D), text (B, S, D) -> (B, L, D)."""
        k, v = self.kv(text).chunk(2, dim=-1)
        q, k = self.norm_q(self.q(x)).to(v.dtype), self.norm_k(k).to(v.dtype)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return self.out(attend(q, k, v, backend=self.backend))


class Block(nn.Module):
    def __init__(self, shape: WanSize, backend: str):
        super().__init__()
        self.self_attention = SelfAttention(shape.width, shape.heads, backend)
        self.cross_norm = nn.LayerNorm(shape.width, eps=EPS)
        self.cross_attention = CrossAttention(shape.width, shape.heads, backend)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, shape.hidden), nn.GELU(approximate="tanh"), nn.Linear(shape.hidden, shape.width)
        )
        self.table = nn.Parameter(torch.zeros(6, shape.width))  # added to the rows that all blocks share

    def forward(self, x: Tensor, text: Tensor, shared: Tensor, rows: TokenRows | None, positions: Positions) -> Tensor:
        """x (B, L, D), text (B, S, D), shared rows (B, K, 6, D), row of each token -> (B, L, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (shared + self.table).unbind(2)  # (B, K, D) each
        y = modulate(plain_norm(x), shift1, 1 + scale1, rows)
        x = gated_add(x, gate1, self.self_attention(y, positions), rows)
        x = x + self.cross_attention(self.cross_norm(x), text)
        return gated_add(x, gate2, self.mlp(modulate(plain_norm(x), shift2, 1 + scale2, rows)), rows)


_NO_FEATURES = FeatureLayers()
_NO_PROJECTORS: Mapping[str, ProjectorSpec] = MappingProxyType({})


class Wan(nn.Module):
    """Velocity of every token from its noisy value, its own level, its position and the text.

    Args:
        config: shape.
        seed: of the initial weights. On the meta device nothing is drawn; call `reset` once there is storage.
        projectors: name -> head for student features.

    Raises:
        ConfigError: with all problems of the config.
    """

    null: Tensor

    def __init__(self, config: WanConfig, seed: int = 0, projectors: Mapping[str, ProjectorSpec] = _NO_PROJECTORS):
        super().__init__()
        if problems := config.problems():
            raise ConfigError(problems)
        shape = config.shape()
        self.width, self.heads, self.depth = shape.width, shape.heads, shape.depth
        self.media_in = nn.ModuleDict({name: nn.Linear(c, self.width) for name, c in config.channels.items()})
        self.text = nn.Sequential(
            nn.Linear(config.text_width, self.width), nn.GELU(approximate="tanh"), nn.Linear(self.width, self.width)
        )
        # Features of the empty text, which stand for a condition that is dropped.
        self.register_buffer("null", torch.zeros(config.text_rows, config.text_width))
        self.time = TimestepEmbedder(self.width, TIME_SCALE)
        self.time_rows = nn.Linear(self.width, 6 * self.width)
        self.blocks = nn.ModuleList(Block(shape, config.attention) for _ in range(shape.depth))
        self.final_table = nn.Parameter(torch.zeros(2, self.width))
        self.media_out = nn.ModuleDict({name: nn.Linear(self.width, c) for name, c in config.channels.items()})
        self.projector, self.projectors = build_projectors(projectors, self.width)
        if not self.final_table.is_meta:
            self.reset(seed)

    def reset(self, seed: int) -> None:
        """Initial weights: tables are small normal numbers as in the authors' code, and the velocity is 0."""
        self.null.zero_()
        initialize(self, seed, {"table": self.width**-0.5, "time.mlp": 0.02}, zero=("media_out",))

    def forward(
        self,
        noisy: tuple[Tensor, ...],
        levels: NoiseLevels,
        batch: TokenBatch,
        feature_layers: FeatureLayers = _NO_FEATURES,
    ) -> TrunkOutput:
        """As of MMDiT: noisy (B, N, C) per segment, levels of all L tokens -> the velocity of each segment.

        Raises:
            ShapeError: the batch has other modalities, channels or text than the trunk.
            ConfigError: a feature layer does not exist.
        """
        features = Features(feature_layers, self.depth, self.projector, self.projectors)
        order = token_order(levels)
        x = order.sort(self._read_media(noisy, batch))  # (B, L, D)
        text = self.text(published_rows(batch.context, self.null).to(cast(nn.Linear, self.text[0]).weight.dtype))
        positions = self._positions(batch, levels, order, x.dtype)

        with torch.autocast(x.device.type, enabled=False):  # the published network keeps its times in float32
            time = self.time(levels.values)  # (B, K, D)
            shared = self.time_rows(F.silu(time)).unflatten(-1, (6, -1))  # (B, K, 6, D)
        rows = token_rows(order.index, time.shape[1])
        for layer, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, text, shared, rows, positions)
            if features.last(layer, x, order.restore):
                return features.output(None)

        shift, scale = (time[:, :, None] + self.final_table).unbind(2)
        x = order.restore(modulate(plain_norm(x), shift, 1 + scale, rows))
        parts = zip(x.split(list(batch.lengths), dim=1), batch.segments, strict=True)
        velocities = (self.media_out[segment.modality](part) for part, segment in parts)
        return features.output(tuple(v.to(torch.promote_types(v.dtype, torch.float32)) for v in velocities))

    def _read_media(self, noisy: tuple[Tensor, ...], batch: TokenBatch) -> Tensor:
        if len(noisy) != len(batch.segments):
            raise ShapeError(f"noisy: expected one tensor per segment, {len(batch.segments)}, got {len(noisy)}")
        parts = []
        for tokens, segment in zip(noisy, batch.segments, strict=True):
            if segment.modality not in self.media_in:
                known = list(self.media_in)
                hint = nearest(segment.modality, known)
                raise ShapeError(f"modality {segment.modality!r}: this trunk has {', '.join(known)}.{hint}")
            layer = cast(nn.Linear, self.media_in[segment.modality])
            wanted = (*segment.x0.shape[:2], layer.in_features)
            if tuple(tokens.shape) != wanted:
                raise ShapeError(f"noisy {segment.modality}: expected {wanted}, got {tuple(tokens.shape)}")
            parts.append(layer(tokens.to(layer.weight.dtype)))
        return torch.cat(parts, dim=1)

    def _positions(self, batch: TokenBatch, levels: NoiseLevels, order: TokenOrder, dtype: torch.dtype) -> Positions:
        samples = max(segment.ids.shape[0] for segment in batch.segments)
        ids = order.sort(torch.cat([segment.ids.expand(samples, -1, -1) for segment in batch.segments], dim=1))
        head = self.width // self.heads
        spatial = 2 * (head // 6)  # rounded down, 44, 42, 42 of 128
        rotation = rope.rotation(ids, (head - 2 * spatial, spatial, spatial), THETA, dtype)
        if all(segment.valid is None for segment in batch.segments):
            return Positions(rotation, None, levels.separate)
        ones = torch.ones(batch.size, sum(batch.lengths), dtype=torch.bool, device=ids.device)
        parts = [ones[:, : s.x0.shape[1]] if s.valid is None else s.valid for s in batch.segments]
        return Positions(rotation, real_keys(order.sort(torch.cat(parts, dim=1))), levels.separate)
