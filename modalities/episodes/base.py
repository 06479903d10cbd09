"""What the readers of robot data sets offer: episodes, whose images are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.errors import ConfigError, DataError, nearest
from modalities.data.sources.account import Account


@dataclass(frozen=True)
class Fields:
    """What of a data set is read, by its own names.

    Attributes:
        image: the camera.
        actions, states: vectors and numbers that are put one after another, in this order; no states: none are read.
        instruction: text of the task; "" where there is none.
    """

    image: str
    actions: tuple[str, ...]
    states: tuple[str, ...] = ()
    instruction: str = ""


@dataclass(frozen=True)
class Episode:
    """
    Attributes:
        key: unique and stable within its data set.
        origin: file and place in it, for messages.
        actions: (T, W) float32, physical; row k is what was done at step k.
        states: (T, S) float32, or None where none are read.
        instruction: "" where there is none.
        frames: numbers of steps, in any order -> uint8 (n, H, W, 3). Raises DataError for damaged images.
        frame_bytes: encoded images of all steps.
    """

    key: str
    origin: str
    actions: np.ndarray
    states: np.ndarray | None
    instruction: str
    frames: Callable[[Sequence[int]], np.ndarray]
    frame_bytes: int

    @property
    def steps(self) -> int:
        """T."""
        return len(self.actions)


class EpisodeSet(Protocol):
    """Random access to episodes.

    Attributes:
        fps: steps a second.
        steps: (E,) int64, T of each episode.
        fields: what is read.
    """

    fps: float
    steps: np.ndarray
    fields: Fields

    def key(self, index: int) -> str: ...

    def read(self, index: int, images: bool = True) -> Episode:
        """Raises DataError for a damaged episode.

        Args:
            images: False where `frames` will not be asked for.
        """
        ...

    def account(self) -> Account: ...

    def fingerprint(self) -> str:
        """Changes when the episodes or their order change."""
        ...

    def describe(self) -> list[str]:
        """Lines for `selfflow inspect`: what the set holds, by its own names."""
        ...


def wrong_field(setting: str, name: str, names: Sequence[str], where: str) -> ConfigError:
    """A field that a data set does not have."""
    return ConfigError(f"{setting}: {name!r} is not in {where}; it has {', '.join(names)}.{nearest(name, names)}")


def stacked(columns: Sequence[np.ndarray], steps: int, names: Sequence[str], origin: str) -> np.ndarray:
    """Columns (T,) or (T, ...) side by side, (T, W) float32. Raises DataError for one of another length."""
    for name, column in zip(names, columns, strict=True):
        if len(column) != steps:
            raise DataError(f"{origin}: {name} has {len(column)} steps, and the episode {steps}")
    return np.concatenate([np.asarray(column, np.float32).reshape(steps, -1) for column in columns], axis=1)
