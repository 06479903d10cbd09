"""Several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate

import numpy as np

from modalities.base import Record, Source
from modalities.data.order import Blocks, blocks_of
from modalities.data.sources.account import Account
from modalities.data.sources.selection import digest
from modalities.latents.format import Manifest, stored_manifests


class ConcatSource:
    """Several sources one after another, each repeated a number of times.

    Keys become `name/key`, and `name/key#2` for the second repetition, so that each repetition of a record has its own
    noise.

    Args:
        parts: name -> source; a single part may have the name "", which is then not put before its keys.
        repeat: name -> how often; 1 where it is left out.
    """

    def __init__(self, parts: dict[str, Source], repeat: dict[str, int] | None = None):
        repeat = repeat or {}
        self.runs = [(name, part, turn) for name, part in parts.items() for turn in range(repeat.get(name, 1))]
        self._ends = list(accumulate(len(part) for _, part, _ in self.runs))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Record:
        run = bisect_right(self._ends, index)
        name, part, turn = self.runs[run]
        record = part.read(index - (self._ends[run] - len(part)))
        key = f"{name}/{record.key}" if name else record.key
        return replace(record, key=f"{key}#{turn + 1}" if turn else key)

    def labels(self) -> list[str]:
        return sorted({label for _, part, turn in self.runs if turn == 0 for label in part.labels()})

    def blocks(self) -> Blocks | None:
        """The blocks of the parts; a part without any is cut into blocks as large as the others' and scattered."""
        found = [blocks_of(part) for _, part, _ in self.runs]
        known = [one for one in found if one is not None]
        if not known:
            return None
        typical = max(1, int(np.median(np.concatenate([one.sizes for one in known]))))
        sizes, scattered, start = [], [], 0
        for (_, part, _), one in zip(self.runs, found, strict=True):
            if one is None:
                scattered.append((start, start + len(part)))
                pieces = -(-len(part) // typical)
                sizes.append(np.diff(np.arange(pieces + 1) * len(part) // max(1, pieces)))
            else:
                scattered += [(start + low, start + high) for low, high in one.scattered]
                sizes.append(one.sizes)
            start += len(part)
        return Blocks(np.concatenate(sizes), max(one.window for one in known), tuple(scattered))

    def stored(self) -> list[Manifest]:
        """The stored latents among the parts."""
        return [manifest for _, part, turn in self.runs if turn == 0 for manifest in stored_manifests(part)]

    def account(self) -> Account:
        """The account of all parts; one that is repeated counts once."""
        total = Account()
        for _, part, turn in self.runs:
            if turn == 0:
                total.add(part.account())
        return total

    def fingerprint(self) -> str:
        return digest("concat", *(f"{name}#{turn}:{part.fingerprint()}" for name, part, turn in self.runs))
