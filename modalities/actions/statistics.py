"""Statistics of the vectors of a robot data set, number by number, and the JSON file that keeps them.

`selfflow stats` writes {"action": {q01, q99, mean, std, min, max, count}, "state": {...}}. Files of others are read
too: p01 and p99 in place of q01 and q99, and `proprio` or `observation.state` for the state, as Octo, OpenVLA and
LeRobot have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError
from core.keys import key

FIELDS = ("q01", "q99", "mean", "std", "min", "max")
QUANTILES = {"q01": "p01", "q99": "p99"}  # as others call them
NAMES = {"action": ("action", "actions"), "state": ("state", "proprio", "observation.state")}


@dataclass(frozen=True)
class Statistics:
    """Statistics of a vector of W numbers, over all steps of all episodes.

    Attributes:
        values: a name of `FIELDS` -> (W,) float64; a file of others may lack some.
        count: vectors that they are of; 0 where a file does not say.
    """

    values: Mapping[str, np.ndarray]
    count: int = 0

    @property
    def width(self) -> int:
        """W."""
        return len(next(iter(self.values.values())))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, equal for equal numbers in files of any layout."""
        rows = (f"{name}:{self.values[name].tolist()}" for name in FIELDS if name in self.values)
        return f"{key('statistics', *rows):016x}"

    def to_dict(self) -> dict[str, Any]:
        return {name: self.values[name].tolist() for name in FIELDS if name in self.values} | {"count": self.count}


def measure(vectors: Sequence[np.ndarray]) -> Statistics:
    """Statistics of arrays (T, W) float32, with exact quantiles (linear between the two nearest values).

    Takes the memory of the vectors once more: 106 MB for the 3.8 million actions of RT-1.
    """
    rows = np.concatenate(vectors)  # (count, W)
    columns = [column.astype(np.float64) for column in rows.T]
    ends = np.array([np.quantile(column, (0.01, 0.99)) for column in columns])  # (W, 2)
    found = {
        "q01": ends[:, 0],
        "q99": ends[:, 1],
        "mean": np.array([column.mean() for column in columns]),
        "std": np.array([column.std() for column in columns]),
        "min": np.array([column.min() for column in columns]),
        "max": np.array([column.max() for column in columns]),
    }
    return Statistics(found, len(rows))


def write_statistics(path: Path, found: Mapping[str, Statistics], about: Mapping[str, Any]) -> None:
    """Write a file that `read_statistics` reads.

    Args:
        found: action, and state where there is one.
        about: what they are of, for people.
    """
    parts = {name: {**values.to_dict(), "digest": values.digest} for name, values in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**parts, **about}, indent=1) + "\n", encoding="utf-8")


def read_statistics(path: Path, kind: str) -> Statistics:
    """Statistics of the actions or states (`kind`) in a file. Raises ConfigError where they are missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"statistics: {path} cannot be read ({error.strerror}); `selfflow stats` writes such a file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"statistics: {path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"statistics: {path} holds a {type(content).__name__}, not the statistics of a data set")
    section = next((content[name] for name in NAMES[kind] if name in content), None)
    if not isinstance(section, dict):
        raise ConfigError(
            f"statistics: {path} has none of {', '.join(NAMES[kind])}; it has {', '.join(content) or 'nothing'}"
        )
    values = {}
    for name in FIELDS:
        rows = section.get(name, section.get(QUANTILES.get(name, name)))
        if rows is not None:
            values[name] = _vector(rows, f"statistics: {path}: {kind}.{name}")
    if not values or len({len(rows) for rows in values.values()}) > 1:
        there = ", ".join(f"{len(rows)} of {name}" for name, rows in values.items())
        raise ConfigError(f"statistics: {path}: {kind} must hold lists of one length: {there or 'there are none'}")
    count = section.get("count", content.get("num_transitions", 0))
    return Statistics(values, int(np.ravel(count)[0]))


def _vector(rows: object, what: str) -> np.ndarray:
    try:
        found = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros((0, 0))
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ConfigError(f"{what}: must be a list of finite numbers")
    return found
