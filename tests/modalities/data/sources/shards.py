"""Small MDS shards of numbered images; what imports this is skipped where mosaicml-streaming is not installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")

from core.errors import DataError  # noqa: E402 - after the check that streaming is there
from modalities.data.sources.mds import MdsShards  # noqa: E402
from tests.modalities.data.sets import image  # noqa: E402

COLUMNS = {"image": "bytes", "caption": "str", "label": "int"}


def write_mds(folder: Path, count: int = 40, shard_bytes: int = 1300, **options) -> Path:
    """Records 0..count-1, about ten in a shard."""
    settings = {"columns": COLUMNS, "hashes": ["xxh64"], "size_limit": shard_bytes} | options
    with streaming.MDSWriter(out=str(folder), **settings) as writer:
        for number in range(count):
            writer.write({"image": image(number), "caption": f"number {number}", "label": number % 3})
    return folder


def read_all(shards: MdsShards) -> dict[int, str]:
    """index -> the error of every sample that cannot be read; the others must be right."""
    errors = {}
    for index in range(len(shards)):
        try:
            sample = shards.read(index)
        except DataError as error:
            errors[index] = str(error)
        else:
            assert sample == {"image": image(index), "caption": f"number {index}", "label": index % 3}
    return errors


def change_index(folder: Path, change: Callable[[dict], None]) -> None:
    """Apply a change to the content of index.json."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
