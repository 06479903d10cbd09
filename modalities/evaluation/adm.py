"""The files of the ADM evaluator (openai/guided-diffusion, evaluations/): samples out and in, reference statistics.

    python evaluator.py REFERENCE.npz SAMPLES.npz

A sample file holds `arr_0`, uint8 (N, H, W, 3). A reference file holds `mu` (2048), `sigma` (2048, 2048) of the pooled
features, `mu_s` (2023), `sigma_s` (2023, 2023) of the spatial ones, and mostly `arr_0` too (precision and recall need
its images). Other programs write `mu` and `sigma` alone. Both directions stream: 50,000 images of 256 x 256 are
9.8 GB.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from core.errors import DataError, ShapeError
from modalities.media.opening import with_suffix
from modalities.media.writing import to_bytes

STATISTICS = {"mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023)}
POOLED, SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")


@dataclass(frozen=True)
class Reference:
    """Mean and covariance (float64) of inception features, None where the file has none.

    `samples`: images in the same file.
    """

    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    samples: int = 0


def write_samples(path: Path | str, batches: Iterable[Tensor], count: int) -> Path:
    """Images (B, 3, H, W) in [-1, 1] -> `path`.npz with `arr_0`. Holds one batch at a time.

    The levels are rounded, as in every file this project writes (guided-diffusion's own script truncates). The file
    appears under its name only when it is complete.

    Args:
        count: number of images, which the file's header states before the first one.

    Raises:
        ShapeError: images of different sizes, or not `count` of them.
    """
    path = with_suffix(Path(path), ".npz")
    part = path.with_name(path.name + ".part")
    done, size = 0, None
    try:
        with (
            zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as entry,
        ):
            for batch in batches:
                if batch.ndim != 4 or batch.shape[1] != 3 or (size and tuple(batch.shape[2:]) != size):
                    wanted = f"(B, 3, {size[0]}, {size[1]})" if size else "(B, 3, H, W)"
                    raise ShapeError(f"{path}: expected images {wanted}, got {tuple(batch.shape)}")
                if size is None:
                    size = tuple(batch.shape[2:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
                    np.lib.format.write_array_header_1_0(entry, header)
                done += len(batch)
                if done > count:
                    break
                entry.write(to_bytes(batch).data)
        if done != count or not done:
            raise ShapeError(f"{path}: {'more' if done > count else done} images came, {count} were announced")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_reference(path: Path | str, reference: Reference) -> Path:
    """A reference file that the evaluator reads, without images: FID and sFID only."""
    path = with_suffix(Path(path), ".npz")
    arrays: dict[str, Any] = {name: np.asarray(getattr(reference, name), np.float64) for name in STATISTICS}
    np.savez(path, **arrays)
    return path


def count_samples(path: Path | str) -> tuple[int, int, int]:
    """(N, H, W) of `arr_0`, from its header."""
    with _images(Path(path)) as (_, shape):
        return shape[:3]


def read_samples(path: Path | str, batch: int = 64) -> Iterator[Tensor]:
    """(B, 3, H, W) float32 in [-1, 1] whose 8-bit levels are exactly the file's. Also of a reference file."""
    with _images(Path(path)) as (entry, (number, *size)):
        for start in range(0, number, batch):
            count = min(batch, number - start)
            wanted = count * math.prod(size)
            data = _read(entry, wanted)
            if len(data) != wanted:
                raise DataError(f"{path}: arr_0 ends after {start} of {number} images: the file is cut off")
            levels = torch.frombuffer(data, dtype=torch.uint8).view(count, *size)  # (B, H, W, 3)
            yield levels.permute(0, 3, 1, 2).float() / 127.5 - 1


def read_reference(path: Path | str) -> Reference:
    """What a file has of a reference batch: both pairs of statistics, `mu` and `sigma` alone, or images alone.

    Raises DataError for any other file.
    """
    path = Path(path)
    with _archive(path) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
    wanted = [name for pair in (POOLED, SPATIAL) if set(pair) <= set(held) for name in pair]
    if not set(POOLED) <= set(held) and (set(STATISTICS) & set(held) or "arr_0" not in held):
        raise DataError(
            f"{path}: holds {', '.join(held) or 'nothing'}; a reference holds mu and sigma, with mu_s and sigma_s for "
            f"sFID, or images as arr_0"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = {name: arrays[name].astype(np.float64) for name in wanted}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    for name in wanted:
        shape = STATISTICS[name]
        if values[name].shape != shape:
            raise DataError(f"{path}: {name} is {values[name].shape}, inception features have {shape}")
        if not np.isfinite(values[name]).all():
            raise DataError(f"{path}: {name} holds values that are not finite")
    return Reference(**values, samples=count_samples(path)[0] if "arr_0" in held else 0)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz file: {getattr(error, 'strerror', None) or error}") from error
    with archive:
        yield archive


@contextmanager
def _images(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
    """`arr_0` after its header, and its shape (N, H, W, 3)."""
    with _archive(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            raise DataError(f"{path}: holds {', '.join(archive.namelist()) or 'nothing'}, but no arr_0 (uint8 images)")
        with archive.open("arr_0.npy") as entry:
            try:
                version = np.lib.format.read_magic(entry)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = read[version](entry)
            except (ValueError, KeyError) as error:
                raise DataError(f"{path}: arr_0 has no readable header: {error}") from error
            if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or 0 in shape:
                order = ", columns first" if fortran else ""
                raise DataError(f"{path}: arr_0 is {dtype} {shape}{order}, expected uint8 (N, H, W, 3)")
            yield entry, shape


def _read(entry: IO[bytes], wanted: int) -> bytearray:
    """`wanted` bytes, fewer at the end of the entry (a zip entry may give less than asked for)."""
    data = bytearray()
    while len(data) < wanted:
        try:
            piece = entry.read(wanted - len(data))
        except (EOFError, zipfile.BadZipFile):
            break
        if not piece:
            break
        data += piece
    return data
