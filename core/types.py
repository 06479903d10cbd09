"""The types that cross rooms. All are frozen and checked when they are built.

Shape letters, here and everywhere:
    B samples, N tokens of one segment, L tokens of all segments of a sample, C latent channels,
    D trunk width, S context tokens, G rows summed into one context token, K distinct noise levels per sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.errors import ShapeError

Item = TypeVar("Item")


def _expect(owner: str, name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is not None and tuple(value.shape) != shape:
        raise ShapeError(f"{owner}.{name}: expected shape {shape}, got {tuple(value.shape)}")


def has_values(tensor: Tensor) -> bool:
    """Whether looking at its values costs no wait: on a CPU, and neither traced nor without storage (a subclass)."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def map_tensors(item: Item, function: Callable[[Tensor], Tensor]) -> Item:
    """`function` applied to every tensor inside nested frozen dataclasses, tuples and None."""
    return _mapped(item, function)


def _mapped(item: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, Tensor):
        return function(item)
    if isinstance(item, tuple):
        return tuple(_mapped(value, function) for value in item)
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{f.name: _mapped(getattr(item, f.name), function) for f in fields(item)})
    return item


@dataclass(frozen=True)
class Segment:
    """Clean latent tokens of one part of the samples, normalized.

    Attributes:
        modality: name of the input and output layers that this segment uses.
        x0: (B, N, C) float32.
        ids: (B or 1, N, 3) positions on the axes (t, h, w): integers, or float32 where parts share an axis of time.
        valid: (B, N) bool, False for padding; None means that every token is real.
        conditioning_mask: (B, N) bool, True for conditioning tokens, which carry no loss; None means none.
        part: its name among the parts of a sample; "" is that of the modality.
        weight: factor of its mean velocity error in the loss.
    """

    modality: str
    x0: Tensor
    ids: Tensor
    valid: Tensor | None = None
    conditioning_mask: Tensor | None = None
    part: str = ""
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Name of the part."""
        return self.part or self.modality

    def __post_init__(self):
        owner = f"Segment[{self.name}]"
        if self.x0.ndim != 3 or self.x0.shape[1] == 0:
            raise ShapeError(f"{owner}.x0: expected (B, N, C) with N > 0, got {tuple(self.x0.shape)}")
        batch, tokens, _ = self.x0.shape
        if self.ids.ndim != 3 or self.ids.shape[0] not in (1, batch) or tuple(self.ids.shape[1:]) != (tokens, 3):
            raise ShapeError(f"{owner}.ids: expected ({batch} or 1, {tokens}, 3), got {tuple(self.ids.shape)}")
        if self.ids.dtype in (torch.bool, torch.float16, torch.bfloat16) or self.ids.is_complex():
            raise ShapeError(f"{owner}.ids: expected integers or float32, got {self.ids.dtype}")
        for name in ("valid", "conditioning_mask"):
            value = getattr(self, name)
            _expect(owner, name, value, (batch, tokens))
            if value is not None and value.dtype != torch.bool:
                raise ShapeError(f"{owner}.{name}: expected bool, got {value.dtype}")

    def loss_mask(self) -> Tensor:
        """(B, N) bool: tokens that enter the loss: valid ones that are not conditioning."""
        loss_mask = torch.ones(self.x0.shape[:2], dtype=torch.bool, device=self.x0.device)
        if self.valid is not None:
            loss_mask = loss_mask & self.valid
        if self.conditioning_mask is not None:
            loss_mask = loss_mask & ~self.conditioning_mask
        return loss_mask


@dataclass(frozen=True)
class Context:
    """What the samples are conditioned on: class labels, or a sequence of tokens.

    Attributes:
        dropped: (B,) bool, True where the condition is replaced by the null condition. Drawn once per
            sample, outside the networks, so that student and teacher always agree.
        label: (B,) integer class, or None.
        tokens: (B, S, G) integer rows of a learned table, summed over G (0 is padding); or (B, S, Dc)
            features of a frozen encoder; or None.
        valid: (B, S) bool, which context tokens are real; needed with `tokens`.
    """

    dropped: Tensor
    label: Tensor | None = None
    tokens: Tensor | None = None
    valid: Tensor | None = None

    def __post_init__(self):
        batch = self.dropped.shape[0]
        _expect("Context", "dropped", self.dropped, (batch,))
        _expect("Context", "label", self.label, (batch,))
        if self.tokens is not None:
            if self.tokens.ndim != 3 or self.tokens.shape[0] != batch:
                raise ShapeError(f"Context.tokens: expected ({batch}, S, ...), got {tuple(self.tokens.shape)}")
            if self.valid is None:
                raise ShapeError("Context.valid: needed beside Context.tokens")
            _expect("Context", "valid", self.valid, tuple(self.tokens.shape[:2]))

    def drop_all(self) -> Context:
        """The null condition for every sample, for guidance."""
        return replace(self, dropped=torch.ones_like(self.dropped))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, and double precision stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def join_contexts(first: Context, second: Context) -> Context:
    """The samples of both, in this order. Raises ShapeError where one has labels or tokens that the other lacks."""
    pairs = {entry.name: (getattr(first, entry.name), getattr(second, entry.name)) for entry in fields(Context)}
    lacking = [name for name, pair in pairs.items() if (pair[0] is None) != (pair[1] is None)]
    if lacking:
        raise ShapeError(f"Context.{lacking[0]}: of two contexts that are to be joined, one has it")
    return replace(first, **{name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None})


@dataclass(frozen=True)
class TokenBatch:
    """A batch of samples: a segment for each of their parts, their context, and the key of each sample."""

    segments: tuple[Segment, ...]
    context: Context
    keys: tuple[str, ...] = ()

    def __post_init__(self):
        sizes = {segment.x0.shape[0] for segment in self.segments} | {self.context.dropped.shape[0]}
        if len(sizes) != 1:
            raise ShapeError(f"TokenBatch: segments and context disagree on the number of samples: {sorted(sizes)}")
        names = [segment.name for segment in self.segments]
        if len(set(names)) != len(names):
            raise ShapeError(f"TokenBatch: two segments of one name among {', '.join(names)}; name their parts")
        if self.keys and len(self.keys) != self.size:
            raise ShapeError(f"TokenBatch.keys: expected {self.size} keys, got {len(self.keys)}")

    @property
    def size(self) -> int:
        """B."""
        return self.context.dropped.shape[0]

    @property
    def lengths(self) -> tuple[int, ...]:
        """N of each segment, in order; their sum is L."""
        return tuple(segment.x0.shape[1] for segment in self.segments)

    def loss_mask(self) -> Tensor:
        """(B, L) bool: tokens of all segments that enter the loss."""
        return torch.cat([segment.loss_mask() for segment in self.segments], dim=1)

    def with_conditioning(self, conditioning_mask: Tensor) -> TokenBatch:
        """The batch with other conditioning tokens, (B, L) bool over all segments."""
        rows = conditioning_mask.split(self.lengths, dim=1)
        segments = (replace(segment, conditioning_mask=row) for segment, row in zip(self.segments, rows, strict=True))
        return replace(self, segments=tuple(segments))

    def to(self, device: torch.device | str) -> TokenBatch:
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class NoiseLevels:
    """The noise level of every token, stored as the K distinct levels of each sample.

    Time embeddings and modulations are computed for K rows per sample, and tokens look theirs up
    (core/trunk/modulation.py), which is what makes per-token conditioning nearly free.

    Attributes:
        values: (B, K) float32 in [0, 1]; 0 is data and 1 is noise.
        index: (B, L) integer in [0, K), or None when every token has `values[:, 0]`.
        separate: how many tokens have level 0, 1, ... in every sample, when tokens may attend only to tokens of
            their own level (attention separation, arXiv 2607.02508); None when all attend to all.
    """

    values: Tensor
    index: Tensor | None = None
    separate: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.values.ndim != 2:
            raise ShapeError(f"NoiseLevels.values: expected (B, K), got {tuple(self.values.shape)}")
        if self.index is not None and (self.index.ndim != 2 or self.index.shape[0] != self.values.shape[0]):
            raise ShapeError(f"NoiseLevels.index: expected ({self.values.shape[0]}, L), got {tuple(self.index.shape)}")
        if self.separate is not None:
            wanted = None if self.index is None else self.index.shape[1]
            if len(self.separate) != self.values.shape[1] or sum(self.separate) != wanted:
                raise ShapeError(
                    f"NoiseLevels.separate: {self.separate} must give each of {self.values.shape[1]} levels its number "
                    f"of tokens, {wanted} in all"
                )
            # Other counts would separate the wrong tokens. Where levels are drawn, looking costs no wait for a GPU.
            if self.index is not None and has_values(self.index):
                counts = torch.stack([(self.index == level).sum(dim=1) for level in range(len(self.separate))], dim=1)
                wrong = (counts != torch.tensor(self.separate)).any(dim=1).nonzero().flatten().tolist()
                if wrong:
                    raise ShapeError(
                        f"NoiseLevels.separate: {self.separate} tokens per level, but sample {wrong[0]} has "
                        f"{tuple(counts[wrong[0]].tolist())}"
                    )

    def per_token(self, length: int) -> Tensor:
        """(B, L) level of each token, for a sequence of `length` tokens."""
        if self.index is None:
            return self.values[:, :1].expand(-1, length)
        return self.values.gather(1, self.index)

    def mean_weights(self, loss_mask: Tensor | None = None) -> Tensor:
        """(B, K) share of the tokens at each level, of those in `loss_mask` (B, L) where there is one; sums to 1.

        A sample without any token in it has weights of zero.
        """
        if self.index is None:
            weights = torch.zeros_like(self.values)
            weights[:, 0] = 1.0
            return weights
        levels = torch.arange(self.values.shape[1], device=self.values.device)
        tokens = (self.index[..., None] == levels).to(self.values.dtype)  # (B, L, K)
        if loss_mask is None:
            return tokens.mean(dim=1)
        share = loss_mask / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)  # (B, L)
        return (share[..., None].to(tokens.dtype) * tokens).sum(dim=1)


@dataclass(frozen=True)
class FeatureLayers:
    """Which hidden features a trunk returns. Layers are 1-based: layer 8 is the output of blocks[7].

    Attributes:
        raw: layers returned as they are.
        projected: projector name -> the layer that goes through it; the names are those of the trunk's projectors.
        stop_after: leave after this layer; the output then has no velocity.
    """

    raw: tuple[int, ...] = ()
    projected: dict[str, int] = field(default_factory=dict)
    stop_after: int | None = None


@dataclass(frozen=True)
class TrunkOutput:
    """
    Attributes:
        velocity: one (B, N, C) float32 per segment, or None after an early stop.
        raw: layer -> (B, L, D).
        projected: projector name -> (B, L, its width).
    """

    velocity: tuple[Tensor, ...] | None
    raw: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTerm:
    """A loss as a sum and a count, so that the trainer divides once by the global count.

    Attributes:
        total: scalar sum over this process's share of the batch.
        count: number of elements of the whole (global) batch.
        weight: factor in the total loss.
    """

    total: Tensor
    count: float
    weight: float = 1.0

    def mean(self) -> Tensor:
        return self.total / self.count
