"""Forty numbered images in every kind of source, in about four blocks each, and the damage that is done to them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from modalities.base import Source
from modalities.data.sources.build import MEDIA_SOURCES, build_source
from modalities.data.sources.config import SourceConfig
from tests.modalities.making import image_bytes

COUNT, BLOCKS = 40, 4
KINDS = ("folder", "webdataset", "parquet", "mds")


def image(number: int) -> bytes:
    """PNG of 8x8 pixels, all of the level `number`."""
    return image_bytes(np.full((8, 8, 3), number, np.uint8))


def write_set(kind: str, folder: Path) -> SourceConfig:
    """The records 0..39 with the caption "number N", and the configuration that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    _WRITE[kind](folder)
    blocks = {} if kind == "folder" else {"shuffle_blocks": 3}
    return MEDIA_SOURCES[kind](path=str(folder), **blocks)


def open_set(config: SourceConfig) -> Source:
    return build_source(config, "image", Path())


def number_of(captions: tuple[str, ...]) -> int:
    return int(captions[0].split()[1])


def flip(path: Path, place: int, count: int = 1) -> None:
    """Invert bytes of a file in place."""
    data = bytearray(path.read_bytes())
    for i in range(place, place + count):
        data[i] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _folder(folder: Path) -> None:
    for number in range(COUNT):
        (folder / f"{number:02d}.png").write_bytes(image(number))
        (folder / f"{number:02d}.txt").write_text(f"number {number}")


def _webdataset(folder: Path) -> None:
    per_tar = COUNT // BLOCKS
    for shard in range(BLOCKS):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number in range(shard * per_tar, (shard + 1) * per_tar):
                fields = json.dumps({"caption": f"number {number}", "label": number % 3}).encode()
                for suffix, data in (("png", image(number)), ("json", fields)):
                    info = tarfile.TarInfo(f"{number:02d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _parquet(folder: Path) -> None:
    per_file = COUNT // 2
    for part in range(2):
        numbers = range(part * per_file, (part + 1) * per_file)
        table = pa.table(
            {
                "image": [image(number) for number in numbers],
                "caption": [f"number {number}" for number in numbers],
                "label": [number % 3 for number in numbers],
            }
        )
        parquet.write_table(
            table, folder / f"part-{part}.parquet", row_group_size=COUNT // BLOCKS, write_page_checksum=True
        )


def _mds(folder: Path) -> None:
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
    columns = {"image": "bytes", "caption": "str", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"], size_limit=1300) as writer:
        for number in range(COUNT):
            writer.write({"image": image(number), "caption": f"number {number}", "label": number % 3})


_WRITE: dict[str, Callable[[Path], None]] = {
    "folder": _folder,
    "webdataset": _webdataset,
    "parquet": _parquet,
    "mds": _mds,
}
