"""Images to be measured as they are: a sample file (.npz), a folder, Parquet files, or a tar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, described
from core.optional import need
from modalities.base import Source
from modalities.data.sources.build import MEDIA_SOURCES, build_source
from modalities.data.sources.parquet import ParquetConfig
from modalities.evaluation.adm import count_samples, read_samples
from modalities.media.images import read_image

COLUMNS = ("image", "img", "picture", "jpg", "png")  # of images in Parquet files


class Images:
    """Images of any sizes, in order. Those that cannot be read are skipped, and named in `unusable`.

    Args:
        path: an .npz with `arr_0`; a folder of image files, of Parquet files or of tars; one of these files.

    Attributes:
        unusable: why, of the images met so far.
        sizes: (H, W) of those met so far.

    Raises DataError or ConfigError for anything else.
    """

    def __init__(self, path: Path):
        self.path, self.unusable, self.sizes = path, [], set()
        self._source: Source | None = None
        if is_npz(path):
            self._count = count_samples(path)[0]
        else:
            self._source = open_source(path)
            self._count = len(self._source)

    def __len__(self) -> int:
        """Number of images, including those that cannot be read."""
        return self._count

    def batches(self, batch: int = 64) -> Iterator[Tensor]:
        """(B, 3, H, W) float32 in [-1, 1], at most `batch` of one size; their 8-bit levels are exactly the file's."""
        if self._source is None:
            for media in read_samples(self.path, batch):
                self.sizes.add(tuple(media.shape[2:]))
                yield media
            return
        self.unusable = []
        held: list[Tensor] = []
        for media in self._each(self._source):
            if held and (len(held) == batch or held[0].shape != media.shape):
                yield torch.stack(held)
                held = []
            held.append(media)
        if held:
            yield torch.stack(held)

    def _each(self, source: Source) -> Iterator[Tensor]:
        for index in range(len(self)):
            try:
                record = source.read(index)
                pixels = read_image(record.readable(), record.origin)
            except Exception as error:  # a decoder's; a damaged image must not end the measurement
                if isinstance(error, ConfigError):
                    raise
                self.unusable.append(described(error))
                continue
            media = torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1  # (3, H, W)
            self.sizes.add(tuple(media.shape[1:]))
            yield media

    def warnings(self) -> list[str]:
        """About images that could not be read."""
        if not self.unusable:
            return []
        bad = self.unusable
        return [f"{self.path}: {len(bad)} of {len(self)} images cannot be used; the first: {bad[0]}"]


def is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and not path.is_dir()


def open_source(path: Path) -> Source:
    """The records of a folder, of Parquet files or of tars. Raises ConfigError, DataError."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    kind = {".parquet": "parquet", ".tar": "webdataset"}.get(path.suffix.lower())
    if path.is_dir():
        kind = "folder"
        for suffix, other in ((".parquet", "parquet"), (".tar", "webdataset")):
            if any(path.glob(f"*{suffix}")):
                kind = other
    if kind is None:
        raise DataError(f"{path}: images come as .npz with arr_0, a folder, .parquet or .tar")
    config = MEDIA_SOURCES[kind](path=str(path.absolute()), captions="none")
    if isinstance(config, ParquetConfig):
        config = replace(config, media_field=image_column(path))
    return build_source(config, "image", path.parent)


def image_column(path: Path) -> str:
    """The column of the images in Parquet files; where there is none of the usual names, the first of these."""
    parquet = need("pyarrow.parquet", "a Parquet file", "Folders and .npz files work")
    # A Mac leaves a hidden ._NAME beside NAME.
    files = sorted(each for each in path.glob("*.parquet") if each.name[0] != ".") if path.is_dir() else [path]
    first = files[0] if files else path
    try:
        names = parquet.read_schema(first).names
    except (OSError, ValueError) as error:
        raise DataError(f"{first}: not a Parquet file ({error})") from error
    return next((name for name in COLUMNS if name in names), COLUMNS[0])
