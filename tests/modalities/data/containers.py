"""The same videos, with their captions, in every kind of source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from modalities.data.sources.build import MEDIA_SOURCES
from modalities.data.sources.config import SourceConfig
from modalities.data.sources.folder import FolderConfig

KINDS = ("folder", "webdataset", "parquet", "mds")


def stored(kind: str, files: list[Path], folder: Path) -> SourceConfig:
    """The files, each with its caption in a .txt beside it, in a source of this kind; a new `folder` for it."""
    if kind == "folder":
        return FolderConfig(path=str(files[0].parent))
    rows = [{"video": path.read_bytes(), "caption": path.with_suffix(".txt").read_text()} for path in files]
    folder.mkdir()
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=8)
    elif kind == "webdataset":
        with tarfile.open(folder / "a.tar", "w") as tar:
            for path, row in zip(files, rows, strict=True):
                fields = json.dumps({"caption": row["caption"]}).encode()
                for suffix, data in (("mp4", row["video"]), ("json", fields)):
                    info = tarfile.TarInfo(f"{path.stem}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    else:
        streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
        with streaming.MDSWriter(out=str(folder), columns={"video": "bytes", "caption": "str"}) as writer:
            for row in rows:
                writer.write(row)
    return MEDIA_SOURCES[kind](path=str(folder))
