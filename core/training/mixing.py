"""Which stream a step trains on, and which of its samples: functions of (seed, step), without any state.

Every optimizer step holds one stream, the same on all ranks (one modality in the paper, App. D). The data position of a
stream is the number of samples of its earlier steps, so a checkpoint stores no loader state.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.keys import generator

_BLOCK = 4096  # steps whose streams are drawn at once


@dataclass(frozen=True)
class MixPiece:
    """Shares and batches that held until `until` steps were finished, in a run whose settings were changed then."""

    until: int
    seed: int
    weights: dict[str, float]
    global_batch: dict[str, int]


def share(size: int, number: int, shares: int) -> range:
    """What one of `shares` nearly equal shares has of `size` samples: they lie together, and sizes differ by one at
    most."""
    return range(size * number // shares, size * (number + 1) // shares)


class StreamMix:
    """
    Args:
        weights: stream -> relative probability (0.57 / 0.30 / 0.13 in the paper); they need not sum to 1. Their order
            counts: the draws go by it.
        global_batch: stream -> samples in one optimizer step.
        earlier: what held before, oldest first, of the same streams; positions continue after what they consumed.
    """

    def __init__(
        self,
        seed: int,
        weights: dict[str, float],
        global_batch: dict[str, int],
        earlier: Sequence[MixPiece] = (),
    ):
        self.names, self.global_batch = tuple(weights), global_batch
        self._pieces = [*earlier, MixPiece(sys.maxsize, seed, weights, global_batch)]
        self._blocks: list[tuple[Tensor, Tensor]] = []  # stream and samples of each step, block by block
        self._before = [torch.zeros(len(self.names), dtype=torch.long)]  # samples of each stream before a block

    def _block(self, number: int) -> tuple[Tensor, Tensor]:
        while len(self._blocks) <= number:
            chosen, sizes = self._draw(len(self._blocks))
            self._blocks.append((chosen, sizes))
            taken = torch.zeros(len(self.names), dtype=torch.long).index_add_(0, chosen, sizes)
            self._before.append(self._before[-1] + taken)
        return self._blocks[number]

    def _draw(self, number: int) -> tuple[Tensor, Tensor]:
        """(4096,) stream and (4096,) samples of the steps of a block."""
        chosen, sizes = torch.zeros(_BLOCK, dtype=torch.long), torch.zeros(_BLOCK, dtype=torch.long)
        first, start = number * _BLOCK, 0  # `start` counts within the block
        for piece in self._pieces:
            stop = min(piece.until - first, _BLOCK)
            if stop <= start:
                continue
            weights = torch.tensor([float(piece.weights[name]) for name in self.names], dtype=torch.float64)
            edges = torch.cumsum(weights / weights.sum(), dim=0)[:-1]
            uniform = torch.rand(_BLOCK, generator=generator(piece.seed, "modality", number), dtype=torch.float64)
            batch = torch.tensor([piece.global_batch[name] for name in self.names])
            chosen[start:stop] = torch.bucketize(uniform[start:stop], edges, right=True)
            sizes[start:stop] = batch[chosen[start:stop]]
            start = stop
        return chosen, sizes

    def stream(self, step: int) -> str:
        """The stream of the step that follows `step` finished ones."""
        number, offset = divmod(step, _BLOCK)
        return self.names[int(self._block(number)[0][offset])]

    def first_position(self, step: int) -> int:
        """Position, in its stream's endless sequence of samples, of the first sample of this step."""
        number, offset = divmod(step, _BLOCK)
        chosen, sizes = self._block(number)
        same = chosen[:offset] == chosen[offset]
        return int(self._before[number][chosen[offset]] + sizes[:offset][same].sum())
