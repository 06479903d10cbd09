"""Which process of a run is slow: seconds per step, and what of them is waiting, compared in RUN/ranks.jsonl.

All processes end a step together, since each waits for the others. So the one that waits longest for its data, or
least for the others, holds all of them up.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

FILE = "ranks.jsonl"


class Stragglers:
    """Sums the seconds of this process.

    Args:
        every: steps between two comparisons; 0 makes none.
    """

    def __init__(self, every: int):
        self.every = every
        self._steps, self._sums = 0, {}

    def add(self, **seconds: float) -> None:
        """Those of one step, by what they went into."""
        self._steps += 1
        for name, value in seconds.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def is_due(self, step: int) -> bool:
        """Whether all processes compare behind this step: a function of the step, so that none waits alone."""
        return bool(self.every) and step % self.every == 0 and self._steps > 0

    def take(self) -> dict[str, float]:
        """Mean seconds per step since the last time."""
        found = {name: value / self._steps for name, value in self._sums.items()}
        self._steps, self._sums = 0, {}
        return found


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
