"""Whether an alignment term still changes: in fine-tuning it is known to saturate early.

Looked at are the values as metrics.jsonl has them, one column for each stream and term.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 200  # steps of a stream that are averaged
NEAR = 0.02  # two means that differ by a smaller share count as one


def is_flat(values: Sequence[float]) -> bool:
    """Whether the mean of the last 200 values is that of the 200 before, within 2 percent."""
    if len(values) < 2 * WINDOW:
        return False
    before, after = (sum(part) / WINDOW for part in (values[-2 * WINDOW : -WINDOW], values[-WINDOW:]))
    return abs(after - before) <= NEAR * abs(before)


class Flatness:
    """Says once of each stream's alignment term that it has become flat."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._told: set[tuple[str, str]] = set()

    def add(self, metrics: Mapping[str, Any]) -> list[str]:
        """The metrics of a step -> lines about the terms that are flat since then."""
        found = []
        for name, value in metrics.items():
            place = str(metrics["stream"]), name
            if not name.startswith("align/") or place in self._told:
                continue
            values = self._values[place]
            values.append(float(value))
            if is_flat(values):
                self._told.add(place)
                found.append(
                    f"{place[0]}: {name} is flat, {sum(values[-WINDOW:]) / WINDOW:.4g} in the last {WINDOW} steps and "
                    f"{sum(values[-2 * WINDOW : -WINDOW]) / WINDOW:.4g} before; alignment.TERM.until ends it"
                )
            del values[: -2 * WINDOW]
        return found
