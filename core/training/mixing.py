"""Which modality a step trains on, and which samples: functions of (seed, step), never a stream.

Every optimizer step holds one modality, the same on all ranks (paper App. D). The data position of a modality is
the number of its earlier steps times its batch, so a checkpoint stores no loader state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.keys import generator

_BLOCK = 4096  # steps whose modalities are drawn at once


class ModalityMix:
    """
    Args:
        shares: modality -> relative probability (0.57 / 0.30 / 0.13 in the paper); they need not sum to 1.
        global_batch: modality -> samples in one optimizer step.
    """

    def __init__(self, seed: int, shares: dict[str, float], global_batch: dict[str, int]):
        self.seed, self.names, self.global_batch = seed, tuple(shares), global_batch
        weights = torch.tensor([float(shares[name]) for name in self.names], dtype=torch.float64)
        self._edges = torch.cumsum(weights / weights.sum(), dim=0)[:-1]
        self._blocks: list[Tensor] = []  # the modality of each step, block by block
        self._before = [torch.zeros(len(self.names), dtype=torch.long)]  # steps of each modality before a block

    def _block(self, number: int) -> Tensor:
        while len(self._blocks) <= number:
            draw = generator(self.seed, "modality", len(self._blocks))
            uniform = torch.rand(_BLOCK, generator=draw, dtype=torch.float64)
            block = torch.bucketize(uniform, self._edges, right=True)
            self._blocks.append(block)
            self._before.append(self._before[-1] + torch.bincount(block, minlength=len(self.names)))
        return self._blocks[number]

    def modality(self, step: int) -> str:
        """The modality of the step that follows `step` finished ones."""
        number, offset = divmod(step, _BLOCK)
        return self.names[int(self._block(number)[offset])]

    def first_position(self, step: int) -> int:
        """Position, in its modality's endless sequence of samples, of the first sample of this step."""
        number, offset = divmod(step, _BLOCK)
        block = self._block(number)
        chosen = int(block[offset])
        steps_before = int(self._before[number][chosen]) + int((block[:offset] == chosen).sum())
        return steps_before * self.global_batch[self.names[chosen]]
