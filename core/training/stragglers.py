"""Which process of a run is slow: seconds per step, and what of them is waiting for data, compared in RUN/ranks.jsonl.

All processes end a step together, since each waits for the others; the one that waits longest for its data holds all of
them up.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from core.training.distributed import ALONE, World

FILE = "ranks.jsonl"


class Stragglers:
    """Sums the seconds of this process, and compares their means with those of the others.

    Args:
        every: steps between two comparisons; 0 makes none.
        world: of one process there is nothing to compare.
    """

    def __init__(self, every: int, world: World = ALONE):
        self.every, self.world = every if world.size > 1 else 0, world
        self._steps, self._sums = 0, {}

    def add(self, step: int, **seconds: float) -> dict[str, dict[str, float | int]] | None:
        """Note those of one step, by what they went into; `compared` in every process where `step` is a multiple of
        `every`, so that none waits alone."""
        self._steps += 1
        for name, value in seconds.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if not self.every or step % self.every:
            return None
        means = {name: value / self._steps for name, value in self._sums.items()}
        self._steps, self._sums = 0, {}
        return compared(self.world.gather(means))


def compared(ranks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | int]]:
    """What the seconds went into -> the least, the median and the largest over processes, and whose is the largest."""
    found: dict[str, dict[str, float | int]] = {}
    for name in ranks[0]:
        values = [own[name] for own in ranks]
        largest = max(values)
        found[name] = {
            "min": round(min(values), 6),
            "median": round(statistics.median(values), 6),
            "max": round(largest, 6),
            "rank": values.index(largest),
        }
    return found
