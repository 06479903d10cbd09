"""MDS shards (the format of mosaicml-streaming): random access to their samples, in place or through a local cache.

The engine is mosaicml-streaming's lower level: its readers of the format, its downloaders for object stores, its
decompression and its hashes. Its StreamingDataset was tried (0.13) and is not used. Of a remote folder it refuses a
second data set on the same cache in one process (training and held-out records); after a shard fails its hash, the
next read returns the damaged sample; after a download fails, or its process is killed, other readers of that shard
wait without end. Its resumable state describes an order that it draws itself; ours is a function of the step
(modalities.data.order), which needs random access alone.

What is checked when a process first reads from a shard: its size, its hashes where index.json has some, and its sample
count, columns and offsets against the index. Not caught: flipped bytes that still decode in shards written without
hashes, and changes made to a file after a process has checked it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need
from core.user_cache import user_cache
from modalities.data.order import Blocks, place_in_blocks
from modalities.data.sources.cache import FileCache, is_full, parse_size, touch
from modalities.data.sources.mds_index import MdsIndex, shard_bytes
from modalities.data.sources.selection import digest, listing, missing

ATTEMPTS = 3  # to download a file
BACKOFF = 1.0  # seconds before the second attempt, twice that before the third
TIMEOUT = 60.0  # seconds without an answer from an object store
RETRY_AFTER = 300.0  # seconds for which a shard that failed is not tried again
_KEPT = 256  # readers of shards, each about a kilobyte


class MdsShards:
    """Samples of a folder of MDS shards with its index.json.

    Nothing is held open, so it may be pickled or carried over a fork.

    Args:
        path: a local folder, or a URL such as s3://bucket/folder, gs://bucket/folder or file:///folder.
        cache: folder for copies of remote shards, and for the raw form of compressed ones; several sources and
            processes may share it. None: a folder of the user's cache directory.
        cache_limit: such as "100gb", for all of the cache folder; None: no limit.
        hashes: check those of whole shards. False where samples have checksums of their own, which the caller checks:
            then a damaged byte costs one sample, and a process need not read a shard to read from it.
        encoded: columns of the encoding jpeg or png to hand over as their bytes, instead of decoded images.

    Attributes:
        columns: name -> encoding as the index has it, such as "bytes", "str" or "ndarray:float16".

    Raises ConfigError for a folder that is missing or holds no index.json, for columns of pickled objects, and for a
    limit that two shards exceed; DataError for a damaged index and an unreadable remote.
    """

    def __init__(
        self,
        path: str | Path,
        cache: str | Path | None = None,
        cache_limit: str | None = None,
        hashes: bool = True,
        encoded: tuple[str, ...] = (),
    ):
        self.path, self._hashes, self._encoded = str(path).rstrip("/"), hashes, encoded
        url = urlparse(self.path)
        self._remote = url.scheme not in ("", "file")
        self._base = Path(unquote(url.path) if url.scheme == "file" else path).expanduser()
        self._in_place = not url.scheme and not cache
        self._reset()
        self._index = MdsIndex(self._read_index(), f"{self.path}/index.json")
        self.columns = self._index.columns
        limit = None if cache_limit is None else parse_size(cache_limit)
        if limit is not None and limit < 2 * self._index.largest:
            raise ConfigError(
                f"cache_limit: {cache_limit}; a shard of {self.path} takes {self._index.largest:,} bytes, and two at "
                "least must fit"
            )
        # In the cache, the shards of another index are other files, even under the same URL.
        folder = Path(cache).expanduser() if cache else user_cache("mds")
        self._cache, self._inside = FileCache(folder, limit), digest("mds", self.path, self._index.digest)

    def __len__(self) -> int:
        return int(self._index.ends[-1])

    def blocks(self) -> np.ndarray:
        """(shards,) int64: samples of each shard, in the order of the indices."""
        return np.diff(self._index.ends, prepend=0)

    def in_order(self, window: int) -> Blocks:
        """For the `blocks` of a source that reads `window` shards at a time; ConfigError where the cache is smaller."""
        limit, needed = self._cache.limit, (window + 1) * self._index.largest
        if limit is not None and limit < needed:
            raise ConfigError(
                f"cache_limit: {limit:,} bytes; shuffle_blocks {window} reads that many shards at a time, of up to "
                f"{self._index.largest:,} bytes: set at least {needed:,}, or fewer shuffle_blocks"
            )
        return Blocks(self.blocks(), window)

    def name(self, index: int) -> str:
        """Such as "shard.00003.mds:17"; unique, for keys and messages."""
        shard, row = self._place(index)
        return f"{self._index.shard(shard)['raw_data']['basename']}:{row}"

    def read(self, index: int) -> dict[str, object]:
        """The columns of one sample. Raises DataError for whatever is wrong with it or its shard."""
        shard, row = self._place(index)
        for _ in range(ATTEMPTS):
            reader = self._open(shard)
            try:
                return _decode(reader, reader.get_sample_data(row))
            except FileNotFoundError:  # dropped from the cache by another process, or removed
                self._readers.pop(shard, None)
                self._checked.discard(shard)
            except Exception as error:  # decoders of another package: any error means a bad sample
                raise DataError(
                    f"{self.path}/{self.name(index)}: cannot be decoded: {type(error).__name__}: {error}"
                ) from error
        raise DataError(
            f"{self.path}/{self.name(index)}: gone {ATTEMPTS} times before it was read; raise `cache_limit`"
        )

    def read_file(self, name: str) -> bytes:
        """A file beside the shards. Raises DataError where it cannot be read."""
        with tempfile.TemporaryDirectory() as folder:
            self._download(name, Path(folder) / "file")
            return (Path(folder) / "file").read_bytes()

    def fingerprint(self) -> str:
        """Fingerprint of the index: names, sizes, sample counts and hashes of all shards."""
        return self._index.digest

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_A_PROCESS}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._readers: dict[int, Any] = {}  # of another package, see `_engine`
        self._checked: set[int] = set()  # shards that this process has checked
        self._failed: dict[int, tuple[float, str]] = {}  # when and why
        self._client: tuple[int, Any] = (0, None)  # of the object store, with the process that made it

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: sample {index} of {len(self)}")
        return place_in_blocks(self._index.ends, index)

    def _read_index(self) -> bytes:
        if not self._remote:
            if not self._base.is_dir():
                raise ConfigError(missing(self._base))
            if not (self._base / "index.json").is_file():
                raise ConfigError(f"path: {self._base} holds no index.json (found: {listing(self._base)})")
        return self.read_file("index.json")

    def _open(self, shard: int):
        """A reader of a shard that is here and was checked by this process."""
        reader = self._readers.get(shard)
        if reader is not None and (self._in_place or touch(Path(reader.dirname) / reader.raw_data.basename)):
            return reader
        at, reason = self._failed.pop(shard, (0.0, ""))
        if not reason or time.monotonic() - at > RETRY_AFTER:
            try:
                reader = self._prepare(shard)
            except DataError as error:
                at, reason = time.monotonic(), str(error)
            else:
                if len(self._readers) >= _KEPT:
                    self._readers.pop(next(iter(self._readers)))
                self._readers[shard] = reader
                return reader
        self._failed[shard] = (at, reason)
        raise DataError(reason)

    def _prepare(self, shard: int):
        entry = self._index.shard(shard)
        name = entry["raw_data"]["basename"]
        if self._in_place and (not entry["zip_data"] or (self._base / name).is_file()):
            if shard not in self._checked:
                _check(self._base / name, entry, f"{self.path}/{name}", self._hashes)
            self._checked.add(shard)
            return self._reader(self._base, entry)
        cached = f"{self._inside}/{name}"
        fetch = partial(self._fetch, shard, entry)
        path = self._cache.get(cached, shard_bytes(entry), fetch)
        if shard not in self._checked:
            try:
                _check(path, entry, str(path), self._hashes)
            except DataError:  # whole when it was fetched, so damaged since
                self._cache.drop(cached)
                self._cache.get(cached, shard_bytes(entry), fetch)
        self._checked.add(shard)
        return self._reader(self._cache.folder / self._inside, entry)

    def _reader(self, folder: Path, entry: dict):
        reader = _engine().reader_from_json(str(folder), "", entry)
        for place, name in enumerate(reader.column_names):
            if name in self._encoded and reader.column_encodings[place] in ("jpeg", "png"):
                reader.column_encodings[place] = "bytes"  # decoding belongs to the adapter
        return reader

    def _fetch(self, shard: int, entry: dict, part: Path) -> None:
        """Write the raw form of a shard, checked, to `part`."""
        zipped = entry["zip_data"]
        where = f"{self.path}/{(zipped or entry['raw_data'])['basename']}"
        if zipped:
            copy = part.with_name(part.name + ".zip")
            self._download(zipped["basename"], copy)
            data = copy.read_bytes()
            _check_file(data, zipped, where)
            try:
                part.write_bytes(_engine().decompress(entry["compression"], data))
            except OSError as error:
                if is_full(error):
                    raise
                raise DataError(f"{where}: cannot be decompressed: {error}") from error
            except Exception as error:  # five compression packages, each with errors of its own
                raise DataError(f"{where}: cannot be decompressed: {error}") from error
            copy.unlink()
        else:
            self._download(entry["raw_data"]["basename"], part)
        _check(part, entry, where)
        self._checked.add(shard)

    def _download(self, name: str, to: Path) -> None:
        if self._remote:
            self._download_remote(f"{self.path}/{name}", to)
        else:
            try:
                shutil.copyfile(self._base / name, to)
            except FileNotFoundError as error:
                raise DataError(f"{self.path}/{name}: missing") from error

    def _download_remote(self, url: str, to: Path) -> None:
        for attempt in range(ATTEMPTS):
            try:
                client: Any  # of another package
                owner, client = self._client
                if owner != os.getpid():  # a client that was carried over a fork must not be used
                    client = _engine().CloudDownloader.get(self.path)
                    self._client = (os.getpid(), client)
                client.download(url, str(to), TIMEOUT)
                return
            except ConfigError:
                raise
            except Exception as error:  # the clients of ten object stores, each with its own errors
                if is_full(error):
                    raise
                self._client = (0, None)
                if attempt + 1 == ATTEMPTS:
                    reason = f"{type(error).__name__}: {error}"
                    raise DataError(f"{url}: cannot be read after {ATTEMPTS} attempts: {reason}") from error
            time.sleep(BACKOFF * 2**attempt)


_OF_A_PROCESS = ("_readers", "_checked", "_failed", "_client")


@lru_cache(maxsize=1)
def _engine() -> SimpleNamespace:
    """What is used of mosaicml-streaming, whose import takes seconds and brings torchvision along."""
    need("streaming", "MDS shards (kinds mds and latents)", "Folders, tars and Parquet files are read")
    # Only installed for this kind of data, so that a type checker may not see it.
    from streaming.base.compression import decompress  # pyright: ignore[reportMissingImports]
    from streaming.base.format import reader_from_json  # pyright: ignore[reportMissingImports]
    from streaming.base.hashing import get_hash, is_hash  # pyright: ignore[reportMissingImports]
    from streaming.base.storage import CloudDownloader  # pyright: ignore[reportMissingImports]

    return SimpleNamespace(
        decompress=decompress,
        reader_from_json=reader_from_json,
        get_hash=get_hash,
        is_hash=is_hash,
        CloudDownloader=CloudDownloader,
    )


def _check_size(size: int, file: dict, where: str) -> None:
    if size != file["bytes"]:
        raise DataError(f"{where}: {size:,} bytes, index.json says {file['bytes']:,}")


def _check_file(data: bytes, file: dict, where: str) -> None:
    """Size and hash of a file against the index."""
    _check_size(len(data), file, where)
    known = [name for name in file["hashes"] if _engine().is_hash(name)]
    if known and _engine().get_hash(known[0], data) != file["hashes"][known[0]]:
        raise DataError(f"{where}: damaged: its {known[0]} is not that of index.json")


def _check(path: Path, entry: dict, where: str, hashes: bool = True) -> None:
    """A raw shard against the index: size, hash, samples, offsets, columns. Without `hashes` its beginning is read."""
    count = entry["samples"]
    header = 4 * (count + 2)  # the count, and the offsets of the samples and of the end
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(-1 if hashes else header)
            if not hashes:  # and the description of the columns, up to the first sample
                data += file.read(max(0, int.from_bytes(data[4:8], "little") - header))
    except FileNotFoundError as error:
        raise DataError(f"{where}: missing") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}") from error
    if hashes:
        _check_file(data, entry["raw_data"], where)
    _check_size(size, entry["raw_data"], where)
    offsets = np.frombuffer(data[4:header], np.uint32).astype(np.int64) if len(data) >= header else np.zeros(0)
    if not len(offsets) or int.from_bytes(data[:4], "little") != count:
        raise DataError(f"{where}: {int.from_bytes(data[:4], 'little')} samples, index.json says {count}")
    if offsets[0] < header or offsets[-1] != size or (np.diff(offsets) <= 0).any():
        raise DataError(f"{where}: the offsets of its samples are damaged")
    try:
        written = json.loads(data[header : offsets[0]])
        names = ("column_names", "column_encodings", "column_sizes")
        differ = [name for name in names if written[name] != entry[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: its header is damaged: {error}") from error
    if differ:
        raise DataError(f"{where}: {differ[0]} {written[differ[0]]}, index.json says {entry[differ[0]]}")


def _decode(reader, data: bytes) -> dict[str, object]:
    """One sample; the engine's decoder would cut a column silently where the sizes and the data disagree."""
    free = sum(size is None for size in reader.column_sizes)
    sizes = np.frombuffer(data[: 4 * free], np.uint32)
    expected = 4 * free + int(sizes.sum(dtype=np.int64)) + sum(size or 0 for size in reader.column_sizes)
    if len(sizes) != free or expected != len(data):
        raise ValueError(f"{len(data)} bytes, its columns take {expected}")
    return reader.decode_sample(data)
