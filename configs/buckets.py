"""Streams with several sizes of their images or videos: one stream for each size, which share what they read.

A run's configuration has the stream as it was written, and an `Assembly` works with one stream for each of its sizes,
named after both, such as image_256x384. So a step has samples of one size, drawn as a function of (seed, step) as any
stream is, with positions, counts and an order of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

from configs.schema import Config, PartConfig, StreamConfig
from core.errors import ConfigError, nearest
from modalities.base import Source
from modalities.data.buckets import Bucket, Extent, Measured, Sized
from modalities.data.sources.build import ConcatConfig, build_source
from modalities.data.sources.config import SourceConfig
from modalities.image import height_and_width
from modalities.latents.source import LatentsConfig
from modalities.table import modality


class EmptyBucketError(ConfigError):
    """No record of the data fits a size best."""


@dataclass
class BucketConfig(StreamConfig):
    """One size of a stream, made by `by_size` and never read from a file.

    Attributes:
        of: name of the stream.
        own: it is the `size` of the stream, that `batch` is of.
    """

    of: str = ""
    own: bool = False


def by_size(config: Config) -> Config:
    """The configuration with one stream for each size of those that have several; without such it stays as it is.

    Raises ConfigError where two streams would have one name.
    """
    streams: dict[str, StreamConfig] = {}
    for name, entry in config.streams.items():
        for own, stream in _split(name, entry).items():
            if own in streams:
                raise ConfigError(f"streams.{own}: the name is that of a size of another stream; choose another one")
            streams[own] = stream
    return config if list(streams) == list(config.streams) else replace(config, streams=streams)


def sized_part(name: str, entry: StreamConfig) -> tuple[str, PartConfig] | None:
    """The part of a stream that has several sizes; the schema allows one."""
    parts = entry.named_parts(name).items()
    return next(((key, part) for key, part in parts if getattr(part.media, "sizes", None)), None)


def sizes_of(part: PartConfig) -> list[Extent]:
    """(H, W) of all its sizes."""
    return [height_and_width(size) for size in part.media.sizes]


def bucket_name(stream: str, size: Extent) -> str:
    return f"{stream}_{size[0]}x{size[1]}"


def bucket_batch(batch: int, size: Extent, own: Extent) -> int:
    """Samples of a step of size `own` that have no more tokens than `batch` samples of `size`; at least 1."""
    return max(1, batch * size[0] * size[1] // (own[0] * own[1]))


def _split(name: str, entry: StreamConfig) -> dict[str, StreamConfig]:
    found = None if isinstance(entry, BucketConfig) else sized_part(name, entry)
    if found is None:
        return {name: entry}
    key, part = found
    values = {each.name: getattr(entry, each.name) for each in fields(StreamConfig)}
    buckets: dict[str, StreamConfig] = {}
    own_size = height_and_width(part.media.size)
    for size in sizes_of(part):
        media = replace(part.media, size=list(size))
        shape = {"parts": entry.parts | {key: replace(part, media=media)}} if entry.parts else {"media": media}
        own = bucket_name(name, size)
        changed = {
            "modality": "" if entry.parts else part.modality,
            "batch": bucket_batch(entry.batch, own_size, size),
            "data": _of_bucket(entry.data, own),
            "val": None if entry.val is None else _of_bucket(entry.val, own),
        }
        buckets[own] = BucketConfig(**values | shape | changed, of=name, own=size == own_size)
    return buckets


def _of_bucket(data: SourceConfig, bucket: str) -> SourceConfig:
    """Stored latents lie in a folder for each size, as `selfflow encode` writes them."""
    if isinstance(data, LatentsConfig):
        return replace(data, path=f"{data.path.rstrip('/')}/{bucket}")
    if isinstance(data, ConcatConfig):
        return replace(data, parts={name: _of_bucket(part, bucket) for name, part in data.parts.items()})
    return data


def family(name: str, entry: StreamConfig) -> str:
    """The name of a stream as the configuration has it."""
    return entry.of if isinstance(entry, BucketConfig) else name


class Sources:
    """Opens the records of streams; what the sizes of one stream share is opened and measured once.

    Args:
        root: what relative paths start from.
    """

    def __init__(self, root: Path):
        self.root = root
        self._measured: dict[tuple[str, str], Measured] = {}

    def open(self, name: str, entry: StreamConfig, section: str = "data") -> Source:
        """The records of a stream, of its `section`.

        Raises ConfigError where they cannot be opened, or no record of a source fits one of its sizes best.
        """
        data: SourceConfig = getattr(entry, section)
        modalities = tuple(part.modality for part in entry.named_parts(name).values())
        found = sized_part(name, entry) if isinstance(entry, BucketConfig) and not data.holds_latents else None
        if found is None:
            return build_source(data, modalities, self.root)
        key, part = found
        place = family(name, entry), section
        if place not in self._measured:
            adapter = cast("Sized", modality(part.modality).adapter(replace(part.media, sizes=[])))
            self._measured[place] = Measured(build_source(data, modalities, self.root), key, adapter)
        sizes = sizes_of(part)
        number = sizes.index(height_and_width(part.media.size))
        bucket = Bucket(self._measured[place], sizes, number, part.media.min_size)
        if not len(bucket):
            raise EmptyBucketError(self._empty(place, sizes, number, part.media.min_size))
        return bucket

    def _empty(self, place: tuple[str, str], sizes: list[Extent], number: int, least: int) -> str:
        counts = {size: len(Bucket(self._measured[place], sizes, other, least)) for other, size in enumerate(sizes)}
        shown = ", ".join(f"{h} x {w} {count:,}" for (h, w), count in counts.items())
        height, width = sizes[number]
        return f"no record fits {height} x {width} best; leave it out of media.sizes (records by size: {shown})"


def step_shares(config: Config, sources: Mapping[str, Source]) -> dict[str, float]:
    """stream -> relative probability of a step.

    Those of one stream's sizes add up to its `weight`, and are as the steps that their records fill, so that every
    record is drawn equally often.
    """
    entries = config.streams
    steps = {name: len(sources[name]) / entry.batch for name, entry in entries.items()}
    total: dict[str, float] = {}
    for name, entry in entries.items():
        total[family(name, entry)] = total.get(family(name, entry), 0.0) + steps[name]
    return {
        name: entry.weight * steps[name] / total[entry.of] if isinstance(entry, BucketConfig) else entry.weight
        for name, entry in entries.items()
    }


def of_size(streams: Mapping[str, StreamConfig], wanted: str, size: str | None = None) -> str:
    """The stream that makes media of a size: itself, or one of the sizes of the stream `wanted`.

    Args:
        size: HxW, such as 256x384; None is the stream's own `size`.

    Raises ConfigError for an unknown stream, or one without this size.
    """
    own = {name: entry for name, entry in streams.items() if isinstance(entry, BucketConfig) and entry.of == wanted}
    if size is None and wanted in streams:
        return wanted
    known = [name.removeprefix(f"{wanted}_") for name in own]
    if not own:
        if wanted not in streams:
            names = list(dict.fromkeys(family(name, entry) for name, entry in streams.items()))
            raise ConfigError(
                f"the run was not trained on {wanted}; it has {', '.join(names)}.{nearest(wanted, names)}"
            )
        raise ConfigError(f"--size {size}: {wanted} was trained at one size; leave it out")
    if size is None:
        return next(name for name, entry in own.items() if entry.own)
    if size not in known:
        raise ConfigError(f"--size {size}: {wanted} has the sizes {', '.join(known)}.{nearest(size, known)}")
    return f"{wanted}_{size}"
