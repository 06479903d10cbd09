"""Small encoding jobs; what imports this is skipped where mosaicml-streaming is not installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")

from core.errors import DataError
from modalities.base import Record
from modalities.image import ImageAdapter, ImageConfig
from modalities.latents.chunks import ChunkFolder
from modalities.latents.encode import Job, encode_chunks
from modalities.latents.format import Manifest
from modalities.latents.publish import publish
from modalities.streams import make_parts

PIXELS = {"autoencoder": {"kind": "pixels", "path": None, "digest": ""}, "media": {"size": [8, 8], "patch": 4}}
ABOUT = {
    "parts": {"image": PIXELS},
    "source": {"kind": "memory", "path": "", "fingerprint": "0"},
}


class Images:
    """`count` images of 10 x 14 pixels, of three classes, with one caption or two. Those in `broken` are damaged."""

    def __init__(self, count: int = 21, broken: tuple[int, ...] = ()):
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        if index in self.broken:
            raise DataError(f"memory/{index}: damaged")
        pixels = np.random.default_rng(index).integers(0, 256, (10, 14, 3)).astype(np.uint8)
        captions = (f"number {index}", "an image of noise")[: 1 + index % 2]
        return Record(f"k{index}", f"memory/{index}", pixels, captions=captions, label="abc"[index % 3])

    def labels(self) -> list[str]:
        return ["a", "b", "c"]

    def fingerprint(self) -> str:
        return f"images {self.count} {self.broken}"


def images_job(**changes) -> Job:
    """Chunks of 8 records: two whole ones and a short one."""
    adapter = ImageAdapter(ImageConfig([8, 8], crop="random"))
    parts = make_parts({"image": adapter})
    return replace(Job("image", Images(), parts, 3, 1, 8, "float32", 100), **changes)


def settings_of(job: Job) -> dict:
    return {"records": len(job.source), "chunk": job.chunk, "seed": job.seed, "dtype": job.dtype}


def chunk_folder(job: Job, path: Path) -> ChunkFolder:
    folder = ChunkFolder(path, settings_of(job), job.chunks)
    folder.open()
    return folder


def make(job: Job, path: Path, workers: int = 0, batch: int = 3, about: dict = ABOUT) -> Manifest:
    """What `selfflow encode` does for one stream: the missing chunks, and the whole."""
    folder = chunk_folder(job, path)
    encode_chunks(job, folder, folder.missing(), workers, batch)
    return publish(job, folder, about)


def content(path: Path) -> dict[str, bytes | dict]:
    """Every file below a folder; the manifest without its date and the commit of the code."""
    found = {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    manifest = json.loads(found["manifest.json"])
    return found | {"manifest.json": {name: value for name, value in manifest.items() if name not in ("date", "code")}}
