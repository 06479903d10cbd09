"""FLUX.2 (Black Forest Labs, Apache-2.0 code): which MMDiT its published transformers are.

It differs from the trunk of the paper in settings alone: no biases, an MLP ratio of 3, four rotary axes of which text
has the last, all rows of the text attended to, the empty text in place of a learned null token, and in `dev` an
embedding of the guidance that it was distilled for. Names and orders of its files: core/trunk/foreign/flux2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from core.errors import choose, nearest
from core.trunk.context import ContextConfig
from core.trunk.mmdit import MMDiTConfig


class Flux2Size(NamedTuple):
    width: int
    heads: int
    double_blocks: int
    single_blocks: int
    guided: bool
    text_width: int  # of its text encoder's features, three layers side by side


# config.json of the published transformers: 3.88, 9.08 and 32.2 billion parameters.
SIZES = {
    "klein_4b": Flux2Size(3072, 24, 5, 20, False, 7680),
    "klein_9b": Flux2Size(4096, 32, 8, 24, False, 12288),
    "dev": Flux2Size(6144, 48, 8, 48, True, 15360),
}
GUIDANCE = 4.0  # that dev samples with by default


@dataclass
class Flux2Settings:
    """What an experiment chooses of the trunk; all but the last four are a published network's own.

    Attributes:
        size: a name of `SIZES`; width, heads, double_blocks, single_blocks and guided override it one by one.
        mlp_ratio: hidden width of the SwiGLU layers over the trunk's width.
        rope_axes: channels of a head per axis (t, h, w, token of the text); empty for four equal ones.
        rope_theta: base of the rotary frequencies.
        guided: the network is told a scale of guidance.
        guidance: that scale, in training and sampling; trainers use 1 or 3.5, the published sampler 4. Not looked at
            unless `guided`.
        text_rows: S, rows of text that every sample has.
        text_time: see MMDiTSettings.
        attention: sdpa or xformers.
    """

    size: str = "klein_4b"
    width: int | None = None
    heads: int | None = None
    double_blocks: int | None = None
    single_blocks: int | None = None
    guided: bool | None = None
    mlp_ratio: float = 3.0
    rope_axes: list[int] = field(default_factory=list)
    rope_theta: float = 2000.0
    guidance: float = GUIDANCE
    text_rows: int = 512
    text_time: str = "mean_embedding"
    attention: str = "sdpa"

    def shape(self) -> Flux2Size:
        """The size with its overrides."""
        preset = choose("size", self.size, SIZES)
        chosen = {name: getattr(self, name, None) for name in Flux2Size._fields}
        return preset._replace(**{name: value for name, value in chosen.items() if value is not None})

    def axes(self) -> tuple[int, ...]:
        """Channels of a head per position axis."""
        shape = self.shape()
        return tuple(self.rope_axes) or (shape.width // shape.heads // 4,) * 4

    def problems(self) -> list[str]:
        if self.size not in SIZES:
            return [f"size: {self.size!r} is not one of {', '.join(SIZES)}.{nearest(self.size, SIZES)}"]
        shape, found = self.shape(), []
        if shape.heads >= 1 and len(axes := self.axes()) != 4:
            found.append(f"rope_axes: {list(axes)} must be 4 numbers, the last for text")
        for name, least in {"text_rows": 1, "guidance": 0}.items():
            if getattr(self, name) < least:
                found.append(f"{name}: {getattr(self, name)} must be at least {least}")
        if found or shape.heads < 1:
            return found or [f"heads: {shape.heads} must be at least 1"]
        return self.trunk_config({"image": 1}, 1).problems()

    def trunk_config(self, channels: Mapping[str, int], text_width: int) -> MMDiTConfig:
        """The MMDiT that this is.

        Args:
            channels: of each modality.
            text_width: Dc, channels of the text encoder's features.
        """
        shape = self.shape()
        return MMDiTConfig(
            width=shape.width,
            heads=shape.heads,
            double_blocks=shape.double_blocks,
            single_blocks=shape.single_blocks,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=False,
            rope_axes=list(self.axes()),
            rope_theta=self.rope_theta,
            text_time=self.text_time,
            attention=self.attention,
            channels=dict(channels),
            context=ContextConfig(kind="published", words=self.text_rows, feature_dim=text_width),
            outer_biases=False,
            guidance=self.guidance if shape.guided else None,
        )
