"""What the trainer receives: batches that already hold all their randomness, and what completes them on its device."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from core.noising import NoiseSample
from core.types import TokenBatch, map_tensors


@dataclass(frozen=True)
class Rejected:
    """A record that could not be used, and the position that took its place."""

    stream: str
    key: str
    origin: str
    reason: str
    position: int
    replaced_by: int


class Raw(Protocol):
    """A microbatch as the data side hands it over, to be made into a `Microbatch` on the training device."""

    @property
    def stream(self) -> str: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def counts(self) -> dict[str, float]: ...

    @property
    def counts_of_all(self) -> bool: ...

    @property
    def rejected(self) -> tuple[Rejected, ...]: ...

    def to(self, device: torch.device) -> Raw: ...


@dataclass(frozen=True)
class Microbatch:
    """One forward and backward pass.

    Attributes:
        stream: of the step.
        batch, drawn: the samples and their randomness.
        counts: tokens that carry loss, by the name of the segment, in this microbatch of all processes, known without a
            device sync.
        rejected: records replaced while this microbatch was made.
        targets: name -> (B, L, D') features of frozen encoders.
        counts_of_all: False where `counts` are those of this process alone.
    """

    stream: str
    batch: TokenBatch
    drawn: NoiseSample
    counts: dict[str, float]
    rejected: tuple[Rejected, ...] = ()
    targets: dict[str, Tensor] = field(default_factory=dict)
    counts_of_all: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return self.batch.keys

    def to(self, device: torch.device) -> Microbatch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        targets = {name: move(target) for name, target in self.targets.items()}
        batch, drawn = map_tensors(self.batch, move), map_tensors(self.drawn, move)
        return replace(self, batch=batch, drawn=drawn, targets=targets)


class Preprocess(Protocol):
    """Completes a batch on the training device: latents, their normalization, features of frozen encoders.

    Args:
        targets: whether the encoders' features are read; without them the encoders need not run.
    """

    def __call__(self, raw: Raw, targets: bool = True) -> Microbatch: ...


class BatchLoader(Protocol):
    """The data side of training: the batches of steps `first`, `first` + 1, ... in order."""

    def steps(self, first: int, last: int) -> Generator[tuple[int, Sequence[Raw]], None, None]:
        """(step, its microbatches) for first <= step < last; closed when training ends early."""
        ...
