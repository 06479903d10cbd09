"""Records by the size that fits them best: what a stream with several sizes takes for each of them.

Which size a record has is a function of its own height and width and of the list of sizes, so that a bucket is an
ordinary source, with an order of its own, and needs no state.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from core.errors import DataError
from core.progress import ProgressBar
from core.user_cache import user_cache
from modalities.base import Record, Source
from modalities.data.order import Blocks, blocks_of
from modalities.data.sources.account import Account
from modalities.data.sources.selection import digest

Extent = tuple[int, int]  # (H, W)

ALIKE = 0.05  # shapes whose aspect ratios differ by less, as a logarithm, are taken for one shape
SLOW = 2.0  # seconds after which measuring shows its progress, and is worth keeping


class Sized(Protocol):
    """An adapter of media that have a height and a width."""

    def extent(self, record: Record) -> Extent: ...


def nearest_size(extents: np.ndarray, sizes: Sequence[Extent]) -> np.ndarray:
    """(n,) which of the sizes fits each of the extents (n, 2) best; -1 where an extent is unknown, 0 x 0.

    The shape counts first: of all sizes those stay whose aspect ratio is the nearest, or differs from it by less than 5
    percent. Of these it is the largest that a record fills, or the smallest, to which it is enlarged.
    """
    known = extents.min(axis=1) > 0
    height, width = np.maximum(extents, 1).astype(np.float64).T
    own = np.log(width / height)
    sides = np.array(sizes, dtype=np.float64)  # (sizes, 2)
    apart = np.abs(own[:, None] - np.log(sides[:, 1] / sides[:, 0]))  # (n, sizes)
    alike = apart <= apart.min(axis=1, keepdims=True) + ALIKE
    scale = np.maximum(sides[:, 0] / height[:, None], sides[:, 1] / width[:, None])  # above 1 it is enlarged
    area = sides.prod(axis=1)
    # Filled ones by their area, largest first, then the others, smallest first; of equal ones the nearest shape.
    rank = np.where(scale <= 1, -area, area)
    found = np.lexsort((apart, rank, ~alike), axis=-1)[:, 0]
    return np.where(known, found, -1)


@dataclass
class Measured:
    """The records of a source with their heights and widths, which are read once.

    Attributes:
        part: of the records, whose media are measured.
    """

    source: Source
    part: str
    adapter: Sized

    @cached_property
    def extents(self) -> np.ndarray:
        """(n, 2) int32 height and width of every record, 0 where it cannot be read.

        Kept in the user's cache directory where it took longer than 2 seconds.
        """
        path = user_cache("sizes") / f"{digest(self.source.fingerprint(), self.part)}.npy"
        if path.exists():
            found = np.load(path)
            if found.shape == (len(self.source), 2):
                return found
        bar = ProgressBar(range(len(self.source)), desc="sizes of the records", unit="record", delay=SLOW)
        found = np.array([self._extent(index) for index in bar], dtype=np.int32).reshape(-1, 2)
        if bar.format_dict["elapsed"] > SLOW:
            _keep(path, found)
        return found

    def _extent(self, index: int) -> Extent:
        try:
            return self.adapter.extent(self.source.read(index).part(self.part))
        except DataError:  # training would set it aside
            return 0, 0


def _keep(path: Path, extents: np.ndarray) -> None:
    """A cache that cannot be written is not an error."""
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(aside, extents)  # the name ends in .npy
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)


class Bucket:
    """The records of a source that one of several sizes fits best, as a source.

    Args:
        sizes: of the stream.
        number: of this one among them.
        least: records whose short side is below are left out.
    """

    def __init__(self, measured: Measured, sizes: Sequence[Extent], number: int, least: int = 0):
        self.source, self.number = measured.source, number
        extents = measured.extents
        fits = nearest_size(extents, sizes)
        small = (fits >= 0) & (extents.min(axis=1) < least)
        self.indices = np.flatnonzero((fits == number) & ~small)
        height, width = sizes[number]
        own = extents[self.indices]
        self.enlarged = int(((own[:, 0] < height) | (own[:, 1] < width)).sum())
        self._unread, self._small = int((fits < 0).sum()), int(small.sum())
        self._digest = digest("bucket", measured.source.fingerprint(), str([*map(tuple, sizes)]), f"{number} {least}")

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Record:
        return self.source.read(int(self.indices[index]))

    def blocks(self) -> Blocks | None:
        """Those of the source, with fewer records in each."""
        found = blocks_of(self.source)
        if found is None:
            return None
        ends = np.cumsum(found.sizes)
        sizes = np.diff(np.searchsorted(self.indices, ends, side="left"), prepend=0)
        scattered = [tuple(np.searchsorted(self.indices, [low, high]).tolist()) for low, high in found.scattered]
        return Blocks(sizes, found.window, tuple((low, high) for low, high in scattered if high > low))

    def labels(self) -> list[str]:
        """Those of all sizes."""
        return self.source.labels()

    def account(self) -> Account:
        """That of the whole source, at the first of its sizes alone."""
        account = Account()
        if self.number == 0:
            account.add(self.source.account())
            account.leave("record| that cannot be read", count=self._unread)
            account.leave("record| below min_size", count=self._small)
        return account

    def fingerprint(self) -> str:
        return self._digest
