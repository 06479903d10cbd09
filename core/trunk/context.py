"""From a Context to the tokens that the trunk reads: class labels, a byte-level text encoder, or frozen features.

A dropped sample becomes one learned null token whatever its content; `Context.dropped` alone decides, so student
and teacher agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ShapeError, nearest
from core.trunk.attention import attend
from core.trunk.layers import SwiGLU, plain_norm
from core.types import Context


@dataclass
class ContextConfig:
    """What conditions the trunk.

    Attributes:
        kind: `labels` (one token from a learned table), `tokens` (integer bags read by a small encoder that is
            trained with the trunk), `features` (of a frozen encoder, through one linear layer), `published` (the same
            as FLUX.2 has it, see `published_rows`), or `none` (the null token alone).
        num_classes: of `labels`; the table has one row more, the null class.
        vocabulary: of `tokens`, rows of the table including row 0, the padding.
        words: of `tokens`, the longest sequence S; of `published`, S of every sample.
        encoder_depth: of `tokens`, self-attention blocks of the encoder; 0 for the bare table.
        feature_dim: of `features` and `published`, their width; 7680 for three layers of Qwen3-4B.
    """

    kind: str = "tokens"
    num_classes: int = 1000
    vocabulary: int = 4096
    words: int = 32
    encoder_depth: int = 1
    feature_dim: int = 7680

    def problems(self) -> list[str]:
        if self.kind not in _READERS:
            return [f"kind: {self.kind!r} is not one of {', '.join(_READERS)}.{nearest(self.kind, _READERS)}"]
        lowest = {"num_classes": 1, "vocabulary": 2, "words": 1, "encoder_depth": 0, "feature_dim": 1}
        return [
            f"{name}: {getattr(self, name)} is below {bound}, the smallest allowed"
            for name, bound in lowest.items()
            if getattr(self, name) < bound
        ]


class ContextEmbed(nn.Module):
    """Context -> (tokens (B, S, D), valid (B, S) bool, or None when all are valid)."""

    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str = "sdpa"):
        super().__init__()
        self.reader = _READERS[config.kind](config, width, heads, attention)

    def forward(self, context: Context) -> tuple[Tensor, Tensor | None]:
        return self.reader(context)


class _Labels(nn.Module):
    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str):
        super().__init__()
        self.null = config.num_classes
        self.table = nn.Embedding(config.num_classes + 1, width)

    def forward(self, context: Context) -> tuple[Tensor, None]:
        if context.label is None:
            raise ShapeError("Context.label: needed by a trunk whose context is `labels`, got None")
        return self.table(context.label.masked_fill(context.dropped, self.null)[:, None]), None


class _Tokens(nn.Module):
    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str):
        super().__init__()
        self.words = config.words
        self.table = nn.Embedding(config.vocabulary, width)
        self.position = nn.Parameter(torch.zeros(config.words, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, attention) for _ in range(config.encoder_depth))
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, context: Context) -> tuple[Tensor, Tensor]:
        bags, valid = _tokens_of(context, "tokens", floating=False)
        batch, words, _ = bags.shape
        if words > self.words:
            raise ShapeError(f"Context.tokens: {words} words, but this trunk reads at most {self.words}")
        # Row 0 is left out of the sums. Hidden words are emptied as well, so that no content can pass.
        bags = bags.masked_fill(~valid[..., None], 0)
        x = F.embedding_bag(bags.flatten(0, 1), self.table.weight, mode="sum", padding_idx=0)
        x = x.view(batch, words, -1) + self.position[:words]  # (B, S, D)
        valid = _never_empty(valid)
        for block in self.blocks:
            x = block(x, valid)
        return _with_null(x, valid, context.dropped, self.null)


class _Features(nn.Module):
    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str):
        super().__init__()
        self.feature_dim = config.feature_dim
        self.linear = nn.Linear(config.feature_dim, width, bias=False)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, context: Context) -> tuple[Tensor, Tensor]:
        features, valid = _tokens_of(context, "features", floating=True)
        if features.shape[-1] != self.feature_dim:
            raise ShapeError(f"Context.tokens: {features.shape[-1]} channels, but this trunk reads {self.feature_dim}")
        # Filled, not multiplied by zero: padding may hold anything, even NaN.
        features = features.to(self.linear.weight.dtype).masked_fill(~valid[..., None], 0)
        return _with_null(self.linear(features), _never_empty(valid), context.dropped, self.null)


class _Published(nn.Module):
    null: Tensor

    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str):
        super().__init__()
        self.linear = nn.Linear(config.feature_dim, width, bias=False)
        self.register_buffer("null", torch.zeros(config.words, config.feature_dim))

    def forward(self, context: Context) -> tuple[Tensor, None]:
        return self.linear(published_rows(context, self.null).to(self.linear.weight.dtype)), None


class _Nothing(nn.Module):
    def __init__(self, config: ContextConfig, width: int, heads: int, attention: str):
        super().__init__()
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, context: Context) -> tuple[Tensor, None]:
        return self.null.repeat(context.dropped.shape[0], 1, 1), None  # not a view: a counter of FLOPs trips over it


def published_rows(context: Context, null: Tensor) -> Tensor:
    """Features as FLUX.2 and Wan 2.2 were trained on them: every sample has all rows, and attention hides none.

    Args:
        null: (S, Dc), features of the empty text, which stand where the condition is dropped: these networks have no
            learned null token.

    Returns:
        (B, S, Dc): rows that are not valid, and those that the context lacks, are 0.

    Raises:
        ShapeError: there are no features, or they have other channels or more rows than `null`.
    """
    features, valid = _tokens_of(context, "published", floating=True)
    rows, channels = null.shape
    if features.shape[-1] != channels:
        raise ShapeError(f"Context.tokens: {features.shape[-1]} channels, but this trunk reads {channels}")
    if features.shape[1] > rows:
        raise ShapeError(f"Context.tokens: {features.shape[1]} rows, but this trunk reads at most {rows}")
    features = features.masked_fill(~valid[..., None], 0)
    features = F.pad(features, (0, 0, 0, rows - features.shape[1]))
    return torch.where(context.dropped[:, None, None], null.to(features.dtype), features)


_READERS = {
    "labels": _Labels,
    "tokens": _Tokens,
    "features": _Features,
    "published": _Published,
    "none": _Nothing,
}


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and SwiGLU over context tokens, without time. (B, S, D) -> (B, S, D)."""

    def __init__(self, width: int, heads: int, attention: str):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = SwiGLU(width, 4 * width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = self.qkv(plain_norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # each (B, S, H, head_dim)
        x = x + self.out(attend(q, k, v, valid, self.attention))
        return x + self.mlp(plain_norm(x))


def _tokens_of(context: Context, kind: str, floating: bool) -> tuple[Tensor, Tensor]:
    """The tokens, and which of them are real."""
    tokens = context.tokens
    if tokens is None or tokens.is_floating_point() != floating:
        wanted = "floating-point features" if floating else "integer rows"
        seen = "None" if tokens is None else f"{tokens.dtype}"
        raise ShapeError(f"Context.tokens: a trunk whose context is `{kind}` needs {wanted}, got {seen}")
    assert context.valid is not None  # a `Context` has it beside tokens
    return tokens, context.valid


def _never_empty(valid: Tensor) -> Tensor:
    """An empty text keeps its first, emptied token: attention over no keys at all is not defined."""
    return torch.cat([valid[:, :1] | ~valid.any(dim=1, keepdim=True), valid[:, 1:]], dim=1)


def _with_null(x: Tensor, valid: Tensor, dropped: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Dropped samples: the null token first, and nothing else to look at."""
    first = torch.arange(x.shape[1], device=x.device) == 0
    x = torch.where((dropped[:, None] & first)[..., None], null.to(x.dtype), x)
    return x, torch.where(dropped[:, None], first, valid)
