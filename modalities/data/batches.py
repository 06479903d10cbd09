"""What a data worker makes of one microbatch: media or raw latents, texts, and all randomness. No trunk reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.training.loader import Rejected
from core.types import NoiseLevels, map_tensors
from modalities.conditioning.conditions import RawCondition


@dataclass(frozen=True)
class RawPart:
    """One part of B samples. Of `media` and `latents` there is what the rest is made from; both for frozen encoders.

    Attributes:
        noise: (B, N, C) unit normals, the other end of the path.
        media: (B, *media) clean, where the training device computes something from them.
        latents: (B, N, C) float32, not normalized: stored ones, or those of an autoencoder without weights.
        posterior: (B, N, C) unit normals for an autoencoder that samples its latents.
        valid: (B, N) bool, tokens that are no padding; None where all are real.
    """

    name: str
    noise: Tensor
    media: Tensor | None = None
    latents: Tensor | None = None
    posterior: Tensor | None = None
    valid: Tensor | None = None


@dataclass(frozen=True)
class RawBatch:
    """
    Attributes:
        stream: of the step.
        keys: of the samples.
        parts: in the order of the segments.
        condition: captions or labels.
        student, teacher: noise levels of the L tokens of all parts.
        conditioning_mask: (B, L) bool, conditioning tokens; None where the stream has none.
        counts: tokens that carry loss, by part, in this microbatch of all processes, known without a device sync.
        rejected: records replaced while this was made.
        counts_of_all: False where `counts` are those of this process alone, which padding has made a matter of records.
    """

    stream: str
    keys: tuple[str, ...]
    parts: tuple[RawPart, ...]
    condition: RawCondition
    student: NoiseLevels
    teacher: NoiseLevels
    conditioning_mask: Tensor | None
    counts: dict[str, float]
    rejected: tuple[Rejected, ...] = ()
    counts_of_all: bool = True

    def to(self, device: torch.device) -> RawBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> RawBatch:  # called by torch's DataLoader when it pins
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> RawBatch:
        names = ("parts", "condition", "student", "teacher", "conditioning_mask")
        return replace(self, **{name: map_tensors(getattr(self, name), function) for name in names})
