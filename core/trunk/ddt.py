"""RAE's stage-2 trunk (arXiv 2510.11690): a narrow and deep encoder of the condition, and a wide and shallow head.

The encoder is a transformer like SiT's, modulated by time and class, and sees the noisy tokens. The head (DDT, arXiv
2504.05741) sees the same noisy tokens in an embedding of its own; every token is modulated by what the encoder made of
it. The width of the head lets it pass on latents with many channels per token.

With per-token times, the encoder's modulation has a row for each of the K distinct levels of a sample
(core/trunk/modulation.py). The head takes the time of a token as its own level's embedding, K rows looked up once; its
modulation depends on the token anyway. Parameters carry the names of github.com/bytetriper/RAE (`DiTwDDTHead`), so that
its state dicts load strictly and go back unchanged. Its time runs like ours, from data at 0 to noise at 1, and it
predicts noise minus data too.
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
from core.keys import generator
from core.trunk.attention import real_keys
from core.trunk.class_conditional import embed_label, only_segment, sincos_table, table_rows
from core.trunk.ddt_blocks import Block, Condition, FinalLayer, FourierTime, RotaryTable, TokenEmbed
from core.trunk.features import Features
from core.trunk.layers import fill, initialize
from core.trunk.modulation import modulate, token_rows
from core.trunk.projectors import ProjectorSpec, build_projectors
from core.trunk.recompute import run_block
from core.trunk.separation import token_order
from core.types import FeatureLayers, NoiseLevels, TokenBatch, TrunkOutput


class Size(NamedTuple):
    """Encoder and head."""

    width: int
    depth: int
    heads: int
    head_width: int
    head_depth: int
    head_heads: int


# Those of its repository's configurations, there called DiTDH-S (guides XL by autoguidance) and DiTDH-XL.
SIZES = {
    "S": Size(384, 12, 6, 2048, 2, 16),
    "XL": Size(1152, 28, 16, 2048, 2, 16),
}


@dataclass
class DDTConfig:
    """Shape of the trunk; the defaults are the published ImageNet 256 model's.

    A token is one latent pixel: that is the only patch size its source can run.

    Attributes:
        size: a name of `SIZES`; width, depth and heads (of the encoder) and head_width, head_depth and head_heads (of
            the head) override it one by one.
        grid: tokens per side of the square that has positions.
        channels: C, latent channels of a token.
        num_classes: rows of the label table; the last is the null class.
        mlp_ratio: hidden width of the MLP over the width; with SwiGLU two thirds of that.
        swiglu: SwiGLU instead of a GELU MLP.
        rmsnorm: RMSNorm with a learned scale instead of LayerNorm without one.
        qk_norm: norm of queries and keys per head, of the kind that `rmsnorm` says; no published model has it.
        pos_embed: sine-cosine positions are added to the encoder's tokens, beside the rotary ones.
    """

    size: str = "XL"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    head_width: int | None = None
    head_depth: int | None = None
    head_heads: int | None = None
    grid: int = 16
    channels: int = 768
    num_classes: int = 1001
    mlp_ratio: float = 4.0
    swiglu: bool = True
    rmsnorm: bool = True
    qk_norm: bool = False
    pos_embed: bool = True

    def shape(self) -> Size:
        """The size with its overrides."""
        preset = choose("size", self.size, SIZES)
        chosen = {name: getattr(self, name) for name in Size._fields}
        return preset._replace(**{name: value for name, value in chosen.items() if value is not None})

    def problems(self) -> list[str]:
        if self.size not in SIZES:
            return [f"size: {self.size!r} is not one of {', '.join(SIZES)}.{nearest(self.size, SIZES)}"]
        shape = self.shape()
        counts = shape._asdict() | {n: getattr(self, n) for n in ("grid", "channels")}
        found = [f"{name}: {value} must be at least 1" for name, value in counts.items() if value < 1]
        if found:
            return found
        for name, width, heads in (
            ("width", shape.width, shape.heads),
            ("head_width", shape.head_width, shape.head_heads),
        ):
            if width % heads:
                found.append(f"{name}: {width} is not a multiple of its number of heads, {heads}")
            elif width // heads % 4:
                found.append(
                    f"{name}: {width} gives heads of {width // heads} channels, not a multiple of 4 (two axes)"
                )
        if self.num_classes < 2:
            found.append(f"num_classes: {self.num_classes} must be at least 2, one class and the null class")
        if not self.mlp_ratio > 0:
            found.append(f"mlp_ratio: {self.mlp_ratio} must be above 0")
        return found


_NO_FEATURES = FeatureLayers()
_NO_PROJECTORS: Mapping[str, ProjectorSpec] = MappingProxyType({})


class DDT(nn.Module):
    """Velocity of every token from its noisy value, its own level, its position and the class.

    `depth` and `width` are the encoder's, since that is where features are read: layer 8 is the output of the
    encoder's eighth block, and layer `depth` is what conditions the head. An early stop after any of them leaves the
    whole head out.

    Args:
        config: shape.
        seed: of the initial weights. On the meta device nothing is drawn; call `reset` once there is storage.
        projectors: name -> head for student features.

    Raises:
        ConfigError: with all problems of the config.
    """

    pos_embed: Tensor  # where `config.pos_embed`

    def __init__(self, config: DDTConfig, seed: int = 0, projectors: Mapping[str, ProjectorSpec] = _NO_PROJECTORS):
        super().__init__()
        if problems := config.problems():
            raise ConfigError(problems)
        self.config = config
        self.width, self.depth, heads, head_width, head_depth, head_heads = config.shape()

        self.x_embedder = TokenEmbed(config.channels, head_width)
        self.s_embedder = TokenEmbed(config.channels, self.width)
        same = self.width == head_width
        self.s_projector = nn.Identity() if same else nn.Linear(self.width, head_width)
        self.t_embedder = FourierTime(self.width)
        self.silu = nn.SiLU()
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(config.num_classes, self.width)})
        self.final_layer = FinalLayer(head_width, config.channels, config.rmsnorm)
        # Tables and frequencies are never trained, but part of the published state dict.
        if config.pos_embed:
            self.register_buffer("pos_embed", torch.empty(1, config.grid**2, self.width))
        self.enc_feat_rope = RotaryTable(self.width // heads, config.grid)
        self.dec_feat_rope = RotaryTable(head_width // head_heads, config.grid)
        kind = (config.mlp_ratio, config.swiglu, config.rmsnorm, config.qk_norm)
        encoder = (Block(self.width, heads, *kind) for _ in range(self.depth))
        head = (Block(head_width, head_heads, *kind) for _ in range(head_depth))
        self.blocks = nn.ModuleList([*encoder, *head])
        self.projector, self.projectors = build_projectors(projectors, self.width)
        if not self.t_embedder.W.is_meta:
            self.reset(seed)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Initial weights as in the published code: blocks start as the identity (adaLN-Zero) and the velocity is 0.

        Linear layers inside the blocks, the projection between encoder and head and the biases of the time embedding
        keep PyTorch's default, uniform within 1 / sqrt(inputs).
        """
        tables = {"t_embedder.mlp": 0.02, "embedding_table": 0.02}
        initialize(self, seed, tables, zero=("adaLN_modulation", "final_layer.linear"))
        for name, module in self.named_modules():
            in_block = name.startswith("blocks.") and "adaLN_modulation" not in name
            if in_block or name in ("s_projector", "final_layer.norm_final"):
                _reset_default(module, seed, name)
            elif name.startswith("t_embedder.mlp."):
                _reset_default(module, seed, name, only="bias")
        frequencies = self.t_embedder.W
        frequencies.copy_(torch.randn(frequencies.shape, generator=generator(seed, "initialise", "t_embedder.W")))
        if self.config.pos_embed:
            self.pos_embed.copy_(sincos_table(self.width, self.config.grid))
        self.enc_feat_rope.reset()
        self.dec_feat_rope.reset()

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
            feature_layers: features to return, of layers of the encoder.

        Raises:
            ShapeError: the batch is not of this kind.
            ConfigError: a feature layer does not exist.
        """
        features = Features(feature_layers, self.depth, self.projector, self.projectors)
        tokens, segment = only_segment("DDT", noisy, levels, batch, self.config.channels)
        order = token_order(levels)
        tokens, places = order.sort(tokens), order.sort(table_rows("DDT", segment.ids, self.config.grid))

        rows, key_mask = token_rows(order.index, levels.values.shape[1]), real_keys(segment.valid)
        time = self.t_embedder(levels.values)  # (B, K, D)
        s = self.s_embedder(tokens)  # (B, N, D)
        if self.config.pos_embed:
            s = s + F.embedding(places, self.pos_embed[0]).to(s.dtype)
        label = embed_label(cast(nn.Embedding, self.y_embedder["embedding_table"]), batch)  # (B, D)
        # The published code applies the SiLU here, and each adaLN layer once more.
        condition = Condition(self.silu(self.silu(time + label[:, None])), rows)
        rotation = self.enc_feat_rope(places)
        for layer, block in enumerate(self.blocks[: self.depth], start=1):
            s = run_block(block, s, condition, rotation, levels.separate, key_mask)
            if features.last(layer, s, order.restore):
                return features.output(None)

        s = self.silu(modulate(s, time, torch.ones_like(time), rows))  # each token plus the embedding of its own level
        condition = Condition(self.silu(self.s_projector(s)), rows=None, per_token=True)  # (B, N, D of the head)
        x = self.x_embedder(tokens)
        rotation = self.dec_feat_rope(places)
        for block in self.blocks[self.depth :]:
            x = run_block(block, x, condition, rotation, levels.separate, key_mask)
        velocity = self.final_layer(x, condition)  # (B, N, C)
        velocity = velocity.to(torch.promote_types(velocity.dtype, torch.float32))
        return features.output((order.restore(velocity),))


def _reset_default(module: nn.Module, seed: int, name: str, only: str | None = None) -> None:
    """PyTorch's own initial values of a linear layer or a norm, as a function of seed and name; other modules pass."""
    for part, parameter in module.named_parameters(recurse=False):
        if only not in (None, part):
            continue
        if isinstance(module, nn.Linear):
            draw = torch.rand(parameter.shape, generator=generator(seed, "initialise", f"{name}.{part}"))
            fill(parameter, (draw * 2 - 1) / module.in_features**0.5)
        else:  # a norm
            parameter.fill_(1.0 if part == "weight" else 0.0)
