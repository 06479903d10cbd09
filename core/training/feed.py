"""What the trainer receives: microbatches that already hold all their randomness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from core.noising import Draws
from core.types import TokenBatch, map_tensors


@dataclass(frozen=True)
class Rejected:
    """A record that could not be used, and the position that took its place."""

    modality: str
    key: str
    origin: str
    reason: str
    position: int
    replaced_by: int


@dataclass(frozen=True)
class Microbatch:
    """One forward and backward pass.

    Attributes:
        modality: of the step.
        batch, draws: the samples and their randomness.
        counts: counted tokens of this microbatch by the modality of the segment, known without a device sync.
        rejected: records replaced while this microbatch was made.
        media: (B, *media) clean media, where the training device computes something from it.
        posterior: (B, N, C) unit normals for an autoencoder that samples its latents.
        targets: name -> (B, L, D') features of frozen encoders, added on the training device.
        texts: B captions whose features a frozen text encoder adds to the context on the training device, None for a
            sample that needs none; or ().
    """

    modality: str
    batch: TokenBatch
    draws: Draws
    counts: dict[str, float]
    rejected: tuple[Rejected, ...] = ()
    media: Tensor | None = None
    posterior: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    texts: tuple[str | None, ...] = ()

    def to(self, device: torch.device) -> Microbatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Microbatch:  # called by torch's DataLoader when it pins
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Microbatch:
        parts = {name: map_tensors(getattr(self, name), function) for name in ("batch", "draws", "media", "posterior")}
        return replace(self, **parts)


class Prepare(Protocol):
    """Completes a microbatch on the training device: latents of an autoencoder with weights, encoders' features.

    Args:
        targets: whether the encoders' features are read; without them the encoders need not run.
    """

    def __call__(self, microbatch: Microbatch, targets: bool = True) -> Microbatch: ...


class Feed(Protocol):
    """The data side of training: microbatches of steps `first`, `first` + 1, ... in order."""

    def steps(self, first: int, last: int):
        """Iterator over (step, list of microbatches) for first <= step < last."""
