"""Small MDS shards of numbered pictures; what imports this is skipped where mosaicml-streaming is not installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")

from tests.modalities.making import picture_bytes  # noqa: E402 - after the check that streaming is there

COLUMNS = {"image": "bytes", "caption": "str", "label": "int"}


def picture(number: int) -> bytes:
    """PNG of 8x8 pixels, all of the level `number`."""
    return picture_bytes(np.full((8, 8, 3), number, np.uint8))


def write_mds(folder: Path, count: int = 40, shard_bytes: int = 1300, **options) -> Path:
    """Records 0..count-1, about ten in a shard."""
    settings = {"columns": COLUMNS, "hashes": ["xxh64"], "size_limit": shard_bytes} | options
    with streaming.MDSWriter(out=str(folder), **settings) as writer:
        for number in range(count):
            writer.write({"image": picture(number), "caption": f"number {number}", "label": number % 3})
    return folder


def change_index(folder: Path, change: Callable[[dict], None]) -> None:
    """Apply a change to the content of index.json."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def flip(path: Path, place: int, count: int = 1) -> None:
    """Invert bytes of a file in place."""
    data = bytearray(path.read_bytes())
    for i in range(place, place + count):
        data[i] ^= 0xFF
    path.write_bytes(data)
