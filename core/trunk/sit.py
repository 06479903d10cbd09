"""The per-token SiT of the ImageNet experiments (arXiv 2603.06507, A.3), loadable with the published weights.

The published network modulates every token with an adaLN row of its own, a third of its block FLOPs. Here a row is
computed for each of the K distinct levels of a sample and looked up by its tokens, with the same result. Parameters
carry the published names, so that state dicts load strictly and go back unchanged (core/trunk/foreign/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ConfigError, choose, nearest
from core.trunk.attention import attend, real_keys
from core.trunk.class_conditional import MLP, embed_label, only_segment, sincos_table, table_rows
from core.trunk.features import Features
from core.trunk.layers import TimestepEmbedder, initialize, plain_norm
from core.trunk.modulation import TokenRows, gated_add, modulate, token_rows
from core.trunk.projectors import ProjectorSpec, build_projectors
from core.trunk.recompute import run_block
from core.trunk.separation import token_order
from core.types import FeatureLayers, NoiseLevels, TokenBatch, TrunkOutput


class Size(NamedTuple):
    width: int
    depth: int
    heads: int


SIZES = {
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}


@dataclass
class SiTConfig:
    """Shape of the trunk; the defaults are the published ImageNet model's.

    Attributes:
        size: a name of `SIZES`; width, depth and heads override it one by one.
        grid: tokens per side of the square that has positions.
        channels: C, latent channels of a token.
        patch: latent pixels per side of a token, of which C / patch^2 channels each; orders the output head.
        num_classes: rows of the label table; the last is the null class.
        mlp_ratio: hidden width of the MLP over the trunk's width.
        learn_sigma: the head has a second half of outputs that nothing reads, as published weights have it.
    """

    size: str = "XL"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    grid: int = 16
    channels: int = 16
    patch: int = 2
    num_classes: int = 1001
    mlp_ratio: float = 4.0
    learn_sigma: bool = True

    def shape(self) -> Size:
        """The size with its overrides."""
        preset = choose("size", self.size, SIZES)
        chosen = {name: getattr(self, name) for name in Size._fields}
        return preset._replace(**{name: value for name, value in chosen.items() if value is not None})

    def problems(self) -> list[str]:
        if self.size not in SIZES:
            return [f"size: {self.size!r} is not one of {', '.join(SIZES)}.{nearest(self.size, SIZES)}"]
        shape = self.shape()
        counts = shape._asdict() | {n: getattr(self, n) for n in ("grid", "channels", "patch")}
        found = [f"{name}: {value} must be at least 1" for name, value in counts.items() if value < 1]
        if found:
            return found
        if shape.width % shape.heads:
            found.append(f"width: {shape.width} is not a multiple of heads, {shape.heads}")
        if shape.width % 4:
            found.append(f"width: {shape.width} must be a multiple of 4 (sine and cosine for two axes)")
        if self.channels % self.patch**2:
            found.append(f"channels: {self.channels} is not a multiple of patch^2, {self.patch**2}")
        if self.num_classes < 2:
            found.append(f"num_classes: {self.num_classes} must be at least 2, one class and the null class")
        if not self.mlp_ratio > 0:
            found.append(f"mlp_ratio: {self.mlp_ratio} must be above 0")
        return found


class Attention(nn.Module):
    """Self-attention with biases and without norms of queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, groups: tuple[int, ...] | None, key_mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B, L, H, head_dim) each
        return self.proj(attend(q, k, v, key_mask, groups=groups))


def _adaln(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _modulation(adaln: nn.Sequential, condition: Tensor, count: int) -> list[Tensor]:
    """(B, K, D) -> shift, 1 + scale[, gate[, shift, 1 + scale, gate]], each (B, K, D): the 1 is added to K rows."""
    parts = list(adaln(condition).chunk(count, dim=-1))
    parts[1::3] = [1 + scale for scale in parts[1::3]]
    return parts


class Block(nn.Module):
    """adaLN-Zero transformer block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, hidden)
        self.adaLN_modulation = _adaln(width, parts=6)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rows: TokenRows | None,
        groups: tuple[int, ...] | None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, L, D), condition (B, K, D), row of each token, runs of tokens that attend within, (B, L) bool tokens
        that may be looked at -> (B, L, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(self.adaLN_modulation, condition, count=6)
        x = gated_add(x, gate1, self.attn(modulate(plain_norm(x), shift1, scale1, rows), groups, key_mask), rows)
        return gated_add(x, gate2, self.mlp(modulate(plain_norm(x), shift2, scale2, rows)), rows)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = _adaln(width, parts=2)

    def forward(self, x: Tensor, condition: Tensor, rows: TokenRows | None) -> Tensor:
        """x (B, L, D), condition (B, K, D), row of each token -> (B, L, out)."""
        shift, scale = _modulation(self.adaLN_modulation, condition, count=2)
        return self.linear(modulate(plain_norm(x), shift, scale, rows))


_NO_FEATURES = FeatureLayers()
_NO_PROJECTORS: Mapping[str, ProjectorSpec] = MappingProxyType({})


class SiT(nn.Module):
    """Velocity of every token from its noisy value, its own level, its position and the class.

    Args:
        config: shape.
        seed: of the initial weights. On the meta device nothing is drawn; call `reset` once there is storage.
        projectors: name -> head for student features.

    Raises:
        ConfigError: with all problems of the config.
    """

    pos_embed: Tensor

    def __init__(self, config: SiTConfig, seed: int = 0, projectors: Mapping[str, ProjectorSpec] = _NO_PROJECTORS):
        super().__init__()
        if problems := config.problems():
            raise ConfigError(problems)
        self.config = config
        self.width, self.depth, heads = config.shape()
        out = config.channels * (2 if config.learn_sigma else 1)

        self.x_embedder = nn.ModuleDict({"proj": nn.Linear(config.channels, self.width)})
        self.t_embedder = TimestepEmbedder(self.width)  # of t itself, not of 1000 t
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(config.num_classes, self.width)})
        # Never trained, but part of the published state dict under this name.
        self.register_buffer("pos_embed", torch.empty(1, config.grid**2, self.width))
        hidden = int(config.mlp_ratio * self.width)
        self.blocks = nn.ModuleList(Block(self.width, heads, hidden) for _ in range(self.depth))
        self.final_layer = FinalLayer(self.width, out)
        self.projector, self.projectors = build_projectors(projectors, self.width)
        if not self.pos_embed.is_meta:
            self.reset(seed)

    def reset(self, seed: int) -> None:
        """Initial weights as in DiT: blocks start as the identity (adaLN-Zero) and the velocity is 0."""
        with torch.no_grad():
            self.pos_embed.copy_(sincos_table(self.width, self.config.grid))
        tables = {"t_embedder.mlp": 0.02, "embedding_table": 0.02}
        initialize(self, seed, tables, zero=("adaLN_modulation", "final_layer"))

    def forward(
        self,
        noisy: tuple[Tensor, ...],
        levels: NoiseLevels,
        batch: TokenBatch,
        feature_layers: FeatureLayers = _NO_FEATURES,
    ) -> TrunkOutput:
        """
        Args:
            noisy: one tensor (B, N, C), the noisy tokens; the segment's own x0 is not looked at.
            levels: of the N tokens; 0 is data and 1 is noise.
            batch: one segment, whose ids (h, w) lie in the grid, and class labels.
            feature_layers: features to return.

        Raises:
            ShapeError: the batch is not of this kind.
            ConfigError: a feature layer does not exist.
        """
        features = Features(feature_layers, self.depth, self.projector, self.projectors)
        tokens, segment = only_segment("SiT", noisy, levels, batch, self.config.channels)
        embedder = cast(nn.Linear, self.x_embedder["proj"])
        positions = F.embedding(table_rows("SiT", segment.ids, self.config.grid), self.pos_embed[0])  # (B or 1, N, D)
        order = token_order(levels)
        x = order.sort(embedder(tokens.to(embedder.weight.dtype)) + positions.to(embedder.weight.dtype))  # (B, N, D)

        # The published weights know time the other way round: they embed 1 - t, and predict data minus noise.
        time = self.t_embedder(1 - levels.values)  # (B, K, D)
        label_table = cast(nn.Embedding, self.y_embedder["embedding_table"])
        condition = time + embed_label(label_table, batch)[:, None]  # (B, K, D)

        rows, key_mask = token_rows(order.index, levels.values.shape[1]), real_keys(segment.valid)
        for layer, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, condition, rows, levels.separate, key_mask)
            if features.last(layer, x, order.restore):
                return features.output(None)

        out = self._unshuffle(self.final_layer(x, condition, rows))
        velocity = -out.to(torch.promote_types(out.dtype, torch.float32))  # noise minus data
        return features.output((order.restore(velocity),))

    def _unshuffle(self, out: Tensor) -> Tensor:
        """The head's (p q c) order -> our (c p q), without the half that was once a learned variance."""
        patch = self.config.patch
        out = out.unflatten(-1, (patch * patch, -1)).transpose(-1, -2).flatten(-2)
        return out[..., : self.config.channels]
