"""Curves of a run from its JSON-lines files, read once, line by line, and thinned for a page."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Curve:
    """steps, values: in the order of the file; values may be NaN or infinite."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


@dataclass
class Lines:
    """
    Attributes:
        curves: name -> curve.
        last: the greatest step; 0 where there is none.
        skipped: (step, stream) of steps that were left out.
        broken: lines that are not an entry, such as one that a kill or a disk damaged.
        not_finite: name -> number of values that are NaN or infinite.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    last: int = 0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    broken: int = 0
    not_finite: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, step: float, value: float) -> None:
        if not math.isfinite(value):
            self.not_finite[name] = self.not_finite.get(name, 0) + 1
        self.curves.setdefault(name, Curve()).add(step, value)


def read_metrics(path: Path) -> Lines:
    """metrics.jsonl: curves named STREAM/METRIC."""

    def take(found: Lines, entry: dict[str, Any]) -> None:
        stream = str(entry.get("stream", ""))
        if entry.get("skipped"):
            found.skipped.append((int(entry["step"]), stream))
        for name, value in _numbers(entry):
            found.add(f"{stream}/{name}" if stream else name, entry["step"], value)

    return _read(path, take)


def read_validation(path: Path) -> Lines:
    """validation.jsonl, whose names begin with the stream already."""

    def take(found: Lines, entry: dict[str, Any]) -> None:
        for name, value in _numbers(entry):
            found.add(name, entry["step"], value)

    return _read(path, take)


def read_timings(path: Path) -> Lines:
    """timings.jsonl: `rate` in steps per second and `waiting`, the share of the time that went into waiting for data,
    in percent."""

    def take(found: Lines, entry: dict[str, Any]) -> None:
        seconds, waited = float(entry["seconds"]), float(entry.get("waited", 0.0))
        if seconds > 0:
            found.add("rate", entry["step"], 1 / seconds)
            found.add("waiting", entry["step"], 100 * min(waited / seconds, 1.0))

    return _read(path, take)


def _numbers(entry: dict[str, Any]) -> list[tuple[str, float]]:
    kept = ((name, value) for name, value in entry.items() if name != "step")
    return [(name, value) for name, value in kept if type(value) in (int, float)]  # a bool is no number


def _read(path: Path, take: Callable[[Lines, dict[str, Any]], None]) -> Lines:
    found = Lines()
    if not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
                found.last = max(found.last, int(entry["step"]))
                take(found, entry)
            except (ValueError, KeyError, TypeError, OverflowError):
                found.broken += 1
    return found


def thin(curve: Curve, points: int) -> tuple[list[float], list[float | None]]:
    """Steps and values of at most about `points` points: of every bucket of steps its least and its greatest value, so
    that no spike is lost. A bucket without a finite value is one None, a gap in the line."""
    steps, values = _sorted(curve)
    if len(steps) > points:
        chosen: list[int] = []
        for members in _buckets(steps, max(1, points // 2)):
            finite = members[np.isfinite(values[members])]
            if not len(finite):
                chosen.append(int(members[0]))
                continue
            chosen += {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
        order = np.sort(np.asarray(chosen))
        steps, values = steps[order], values[order]
    return steps.tolist(), [short(value) for value in values.tolist()]


def smooth(curve: Curve, points: int) -> tuple[list[float], list[float | None]]:
    """Means of the finite values of `points` equal ranges of steps, each at its middle."""
    steps, values = _sorted(curve)
    shown: list[tuple[float, float | None]] = []
    for members in _buckets(steps, points):
        finite = members[np.isfinite(values[members])]
        middle = round(float(steps[members].mean()), 1)
        shown.append((middle, short(float(values[finite].mean())) if len(finite) else None))
    return [step for step, _ in shown], [value for _, value in shown]


def _sorted(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Both (number,), by step; steps that were done twice stay in their order."""
    steps, values = np.asarray(curve.steps), np.asarray(curve.values)
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def _buckets(steps: np.ndarray, number: int) -> list[np.ndarray]:
    """Indices of the members of every equal range of steps that has some."""
    low, high = steps[0], steps[-1]
    places = np.minimum(((steps - low) / max(high - low, 1) * number).astype(int), number - 1)
    return np.split(np.arange(len(steps)), np.flatnonzero(np.diff(places)) + 1)


def short(value: float) -> float | None:
    """Five significant digits; None for what JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
