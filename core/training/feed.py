"""What the trainer receives: microbatches that already hold all their randomness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

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
    """

    modality: str
    batch: TokenBatch
    draws: Draws
    counts: dict[str, float]
    rejected: tuple[Rejected, ...] = ()

    def to(self, device: torch.device) -> Microbatch:
        def move(tensor):
            return tensor.to(device, non_blocking=True)

        return replace(self, batch=map_tensors(self.batch, move), draws=map_tensors(self.draws, move))

    def pin_memory(self) -> Microbatch:  # called by torch's DataLoader when it pins
        pin = torch.Tensor.pin_memory
        return replace(self, batch=map_tensors(self.batch, pin), draws=map_tensors(self.draws, pin))


class Feed(Protocol):
    """The data side of training: microbatches of steps `first`, `first` + 1, ... in order."""

    def steps(self, first: int, last: int):
        """Iterator over (step, list of microbatches) for first <= step < last."""
