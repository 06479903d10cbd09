"""The FLUX.2-style multimodal transformer of every experiment beyond ImageNet (arXiv 2603.06507, A.3).

Double blocks keep text and media in two streams that attend jointly; single blocks run one sequence
[text, media]. Every media token is modulated by its own noise level. The modulation layers are shared by all
blocks of a kind, so their rows are computed once per forward for the K distinct levels of a sample, and tokens look
theirs up. Modalities differ in one input and one output layer; everything else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ShapeError, choose, nearest
from core.trunk import rope
from core.trunk.attention import attention_problem
from core.trunk.blocks import DoubleBlock, Joint, Layout, Modulated, Modulation, SingleBlock
from core.trunk.context import ContextConfig, ContextEmbed
from core.trunk.features import Features
from core.trunk.layers import TimestepEmbedder, initialize, plain_norm
from core.trunk.modulation import modulate, token_rows
from core.trunk.projectors import ProjectorSpec, build_projectors
from core.trunk.recompute import run_block
from core.trunk.separation import TokenOrder, token_order
from core.types import FeatureLayers, NoiseLevels, TokenBatch, TrunkOutput


class Size(NamedTuple):
    width: int
    heads: int
    double_blocks: int
    single_blocks: int


# The paper names the sizes and their depths (8, 14, 21, 28) and gives width, heads and split of 625M alone; the
# others are the splits that fit the named parameter counts.
SIZES = {
    "tiny": Size(128, 4, 2, 4),
    "290M": Size(1152, 16, 4, 4),
    "420M": Size(1152, 16, 4, 10),
    "625M": Size(1152, 16, 7, 14),
    "1B": Size(1296, 18, 8, 20),
}


Embed = Callable[[Tensor], Tensor]


def _mean_embedding(embed: Embed, rows: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    return (weights[..., None].to(rows.dtype) * rows).sum(dim=1, keepdim=True)


def _first_level(embed: Embed, rows: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    return rows[:, :1]


def _smallest_level(embed: Embed, rows: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    return embed(values.masked_fill(weights == 0, 1.0).amin(dim=1, keepdim=True))


def _mean_level(embed: Embed, rows: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    return embed((weights * values).sum(dim=1, keepdim=True))


# The time that text tokens are modulated with when media tokens have several (the paper does not say):
# (time embedder, its rows (B, K, D), levels (B, K), share of tokens at each level (B, K)) -> (B, 1, D).
TEXT_TIMES: dict[str, Callable[[Embed, Tensor, Tensor, Tensor], Tensor]] = {
    "mean_embedding": _mean_embedding,
    "t": _first_level,
    "min": _smallest_level,
    "mean_level": _mean_level,
}


@dataclass
class MMDiTSettings:
    """What an experiment chooses of the trunk.

    Attributes:
        size: a name of `SIZES`; width, heads, double_blocks and single_blocks override it one by one.
        mlp_ratio: hidden width of the SwiGLU layers over the trunk's width.
        qkv_bias: biases in the layers that make queries, keys and values (in single blocks that layer is fused
            with the MLP's first one, and the bias covers both). The blocks have no other biases.
        qk_norm: RMSNorm of queries and keys per head.
        rope_axes: channels of a head per axis (t, h, w), even, summing to the head dimension; empty for an even
            split. A fourth axis numbers the tokens of the text, which otherwise all stand at (0, 0, 0).
        rope_theta: base of the rotary frequencies.
        pos_embed: sine-cosine positions are added to the media tokens, beside the rotary ones. FLUX.2 has none. A
            small network that has to say where something is, such as a policy, learns it in fewer steps with them.
        time_scale: factor of the level before its sinusoid.
        text_time: a name of `TEXT_TIMES`, over the tokens that are neither padding nor given. All agree when
            these share one level, as they do at sampling and in the teacher. Not looked at under attention
            separation, where every group has text of its own, at its level.
        attention: sdpa or xformers.
    """

    size: str = "625M"
    width: int | None = None
    heads: int | None = None
    double_blocks: int | None = None
    single_blocks: int | None = None
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = True
    rope_axes: list[int] = field(default_factory=list)
    rope_theta: float = 2000.0
    pos_embed: bool = False
    time_scale: float = 1000.0
    text_time: str = "mean_embedding"
    attention: str = "sdpa"

    def shape(self) -> Size:
        """The size with its overrides."""
        preset = choose("size", self.size, SIZES)
        chosen = {name: getattr(self, name) for name in Size._fields}
        return preset._replace(**{name: value for name, value in chosen.items() if value is not None})

    def axes(self) -> tuple[int, ...]:
        """Channels of a head per position axis."""
        shape = self.shape()
        return tuple(self.rope_axes) or rope.split_axes(shape.width // shape.heads)

    def problems(self) -> list[str]:
        found = []
        if self.size not in SIZES:
            return [f"size: {self.size!r} is not one of {', '.join(SIZES)}.{nearest(self.size, SIZES)}"]
        shape = self.shape()
        for name, value in shape._asdict().items():
            if value < 1:  # without a single block, half of the last double block would feed nothing
                found.append(f"{name}: {value} must be at least 1")
        if not found:
            found += self._head_problems(shape)
        for name in ("mlp_ratio", "rope_theta", "time_scale"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: {getattr(self, name)} must be above 0")
        if self.text_time not in TEXT_TIMES:
            hint = nearest(self.text_time, TEXT_TIMES)
            found.append(f"text_time: {self.text_time!r} is not one of {', '.join(TEXT_TIMES)}.{hint}")
        if problem := attention_problem(self.attention):
            found.append(f"attention: {problem}")
        return found

    def _head_problems(self, shape: Size) -> list[str]:
        if shape.width % shape.heads:
            return [f"width: {shape.width} is not a multiple of heads, {shape.heads}"]
        head_dim, axes = shape.width // shape.heads, self.axes()
        if head_dim % 2 or head_dim < 2 * rope.AXES:
            return [f"heads: {shape.heads} gives heads of {head_dim} channels; needed is an even number from 6"]
        few = len(axes) not in (rope.AXES, rope.AXES + 1)
        if few or sum(axes) != head_dim or any(axis < 2 or axis % 2 for axis in axes):
            return [f"rope_axes: {list(axes)} must be 3 even numbers from 2 that sum to {head_dim}, or 4 with text"]
        return []


@dataclass
class MMDiTConfig(MMDiTSettings):
    """The settings, and what follows from the rest of a run.

    Attributes:
        channels: latent channels C of each modality, {modality: C}.
        context: what conditions the trunk.
        outer_biases: of the layers around the blocks: input, output and time. FLUX.2 has none.
        guidance: scale of guidance that the network is told beside its time, of networks that were distilled for
            it; None for a network without an embedding of it.
    """

    channels: dict[str, int] = field(default_factory=dict)
    context: ContextConfig = field(default_factory=ContextConfig)
    outer_biases: bool = True
    guidance: float | None = None

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.channels:
            found.append("channels: empty; name the latent channels of at least one modality, {modality: C}")
        for modality, channels in self.channels.items():
            if not modality.isidentifier():
                found.append(f"channels: modality {modality!r} must be a plain name (letters, digits, underscore)")
            if channels < 1:
                found.append(f"channels.{modality}: {channels} must be at least 1")
            elif self.size in SIZES and channels > self.shape().width:
                found.append(
                    f"channels.{modality}: {channels} are more than the trunk's width, {self.shape().width}; it could "
                    "not carry the noise that it has to return. Use smaller tokens (media.patch, media.hop) or a wider "
                    "trunk"
                )
        return found + [f"context.{problem}" for problem in self.context.problems()]


_NO_FEATURES = FeatureLayers()
_NO_PROJECTORS: Mapping[str, ProjectorSpec] = MappingProxyType({})


class MMDiT(nn.Module):
    """Velocity of every media token from its noisy value, its own level, its position and the context.

    Args:
        config: shape and options.
        seed: of the initial weights. On the meta device nothing is drawn; call `reset` once there is storage.
        projectors: name -> head for student features.

    Raises:
        ConfigError: with all problems of the config.
    """

    def __init__(self, config: MMDiTConfig, seed: int = 0, projectors: Mapping[str, ProjectorSpec] = _NO_PROJECTORS):
        super().__init__()
        if problems := config.problems():
            raise ConfigError(problems)
        self.width, self.heads, double, single = config.shape()
        self.depth = double + single
        self.attention, self.text_time = config.attention, TEXT_TIMES[config.text_time]
        self.rope_axes, self.rope_theta = config.axes(), config.rope_theta
        self.pos_embed = config.pos_embed
        self.guidance_scale, bias = config.guidance, config.outer_biases
        block = (self.width, self.heads, round(config.mlp_ratio * self.width), config.qkv_bias, config.qk_norm)

        self.media_in = nn.ModuleDict({name: nn.Linear(c, self.width, bias) for name, c in config.channels.items()})
        self.context = ContextEmbed(config.context, self.width, self.heads, config.attention)
        self.time = TimestepEmbedder(self.width, config.time_scale, bias=bias)
        told = config.guidance is not None
        self.guidance = TimestepEmbedder(self.width, config.time_scale, bias=bias) if told else None
        self.media_modulation = Modulation(self.width, groups=2)
        self.text_modulation = Modulation(self.width, groups=2)
        self.single_modulation = Modulation(self.width, groups=1)
        self.double_blocks = nn.ModuleList(DoubleBlock(*block) for _ in range(double))
        self.single_blocks = nn.ModuleList(SingleBlock(*block) for _ in range(single))
        self.silu = nn.SiLU()
        self.final_modulation = nn.Linear(self.width, 2 * self.width, bias=False)
        self.media_out = nn.ModuleDict({name: nn.Linear(self.width, c, bias) for name, c in config.channels.items()})
        self.projector, self.projectors = build_projectors(projectors, self.width)
        if not self.final_modulation.weight.is_meta:
            self.reset(seed)

    def reset(self, seed: int) -> None:
        """Initial weights, a function of the seed and of each parameter's name.

        Modulations and output layers start at zero (adaLN-Zero): blocks are the identity, the velocity is 0.
        """
        for buffer in self.buffers():  # the features of the empty text, until they are set
            buffer.zero_()
        tables = {"table": 0.02, "position": 0.02, "null": 0.02, "time.mlp": 0.02, "guidance.mlp": 0.02}
        initialize(self, seed, tables, zero=("modulation", "media_out"))

    def forward(
        self,
        noisy: tuple[Tensor, ...],
        levels: NoiseLevels,
        batch: TokenBatch,
        feature_layers: FeatureLayers = _NO_FEATURES,
    ) -> TrunkOutput:
        """
        Args:
            noisy: (B, N, C) per segment of the batch, in its order; the segments' own x0 is not looked at.
            levels: of the L tokens of all segments.
            batch: ids, padding and context.
            feature_layers: features to return; layers count double blocks, then single blocks.

        Returns:
            The velocity of each segment, and the features of the L media tokens (never of text).
        """
        features = Features(feature_layers, self.depth, self.projector, self.projectors)
        order = token_order(levels)
        media = order.sort(self._read_media(noisy, batch))  # (B, L, D)
        text, text_valid = self.context(batch.context)
        layout = Layout(text.shape[1], levels.separate or (media.shape[1],))
        text = layout.copies(text.to(media.dtype))  # (B, S, D); S counts every group's own text
        joint = self._joint(batch, layout, order, text_valid, media.dtype)

        time = self._embed_time(levels.values)  # (B, K, D)
        rows = token_rows(order.index, time.shape[1])
        text_time, text_index = self._text_time(time, levels, batch, layout)
        media_mod = Modulated(self.media_modulation(time), rows)
        text_mod = Modulated(self.text_modulation(text_time), token_rows(text_index, text_time.shape[1]))
        for layer, block in enumerate(self.double_blocks, start=1):
            text, media = run_block(block, text, media, text_mod, media_mod, joint)
            if features.last(layer, media, order.restore):
                return features.output(None)

        joint_time, joint_rows = time, rows
        if order.index is not None and text_index is not None:  # text has the levels of media
            joint_rows = token_rows(layout.join(text_index, order.index), time.shape[1])
        elif order.index is not None:  # the time of text is one more level; otherwise they share the only one
            joint_time = torch.cat([time, text_time], dim=1)  # (B, K + 1, D)
            joint_index = nn.functional.pad(order.index, (layout.text, 0), value=time.shape[1])  # (B, S + L)
            joint_rows = token_rows(joint_index, time.shape[1] + 1)
        joint_mod = Modulated(self.single_modulation(joint_time), joint_rows)
        tokens = layout.join(text, media)  # (B, S + L, D)

        def media_of(tokens: Tensor) -> Tensor:
            return order.restore(layout.split(tokens)[1])

        for layer, block in enumerate(self.single_blocks, start=len(self.double_blocks) + 1):
            tokens = run_block(block, tokens, joint_mod, joint)
            if features.last(layer, tokens, media_of):
                return features.output(None)

        shift, scale = self.final_modulation(self.silu(time)).chunk(2, dim=-1)
        media = modulate(plain_norm(layout.split(tokens)[1]), shift, 1 + scale, rows)
        return features.output(self._write_velocity(order.restore(media), batch))

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
            embedded = layer(tokens.to(layer.weight.dtype))
            if self.pos_embed:
                embedded = embedded + rope.sincos(segment.ids, self.width).to(embedded.dtype)
            parts.append(embedded)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _write_velocity(self, media: Tensor, batch: TokenBatch) -> tuple[Tensor, ...]:
        parts = media.split(list(batch.lengths), dim=1)
        velocities = (self.media_out[s.modality](part) for part, s in zip(parts, batch.segments, strict=True))
        return tuple(v.to(torch.promote_types(v.dtype, torch.float32)) for v in velocities)

    def _text_time(
        self, time: Tensor, levels: NoiseLevels, batch: TokenBatch, layout: Layout
    ) -> tuple[Tensor, Tensor | None]:
        """Synthetic levels of text (B, 1 or K, D), and which of them each text token has (B, S), None for the first."""
        if levels.separate is not None:
            return time, layout.text_group(time.device).expand(batch.size, -1)
        if levels.index is None:
            return time[:, :1], None
        partial = any(s.valid is not None or s.conditioning_mask is not None for s in batch.segments)
        weights = levels.mean_weights(batch.loss_mask() if partial else None)
        return self.text_time(self._embed_time, time, levels.values, weights), None

    def _embed_time(self, levels: Tensor) -> Tensor:
        """(B, K) -> (B, K, D), with the scale of guidance where the network is told one."""
        time = self.time(levels)
        if self.guidance is None:
            return time
        return time + self.guidance(levels.new_full((1, 1), cast(float, self.guidance_scale)))

    def _joint(
        self, batch: TokenBatch, layout: Layout, order: TokenOrder, text_valid: Tensor | None, dtype: torch.dtype
    ) -> Joint:
        """Rotary tables and key mask of the joint sequence."""
        samples = max(segment.ids.shape[0] for segment in batch.segments)
        ids = order.sort(torch.cat([segment.ids.expand(samples, -1, -1) for segment in batch.segments], dim=1))
        text_ids = ids.new_zeros(ids.shape[0], layout.text, len(self.rope_axes))
        if len(self.rope_axes) > rope.AXES:
            text_ids[..., rope.AXES] = torch.arange(layout.text, device=ids.device)
            ids = nn.functional.pad(ids, (0, 1))
        ids = layout.join(layout.copies(text_ids), ids)  # (B or 1, S + L, axes)
        rotation = rope.rotation(ids, self.rope_axes, self.rope_theta, dtype)
        # Decided by None, never by looking at values, which would make the host wait for the device.
        if text_valid is None and all(segment.valid is None for segment in batch.segments):
            return Joint(rotation, None, self.heads, self.attention, layout)
        everything = torch.ones(batch.size, layout.text + sum(layout.media), dtype=torch.bool, device=ids.device)
        parts = [everything[:, : s.x0.shape[1]] if s.valid is None else s.valid for s in batch.segments]
        media_valid = order.sort(torch.cat(parts, dim=1))
        text_valid = everything[:, : layout.text] if text_valid is None else text_valid
        return Joint(rotation, layout.join(layout.copies(text_valid), media_valid), self.heads, self.attention, layout)
