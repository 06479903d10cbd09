"""Where the samples of tars lie: found by one scan of the headers, and kept in a file for the next time.

The index of a tar is a file in `.selfflow-index` beside it, or in the user's cache directory where that folder cannot
be written. It holds for the tar's size and time of change; it is written whole or not at all, and one that is damaged
is made again. Opening 10,000 tars then reads 10,000 small heads instead of every header of every tar, and memory holds
a few numbers for each tar: the tables themselves are read as they are needed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.errors import DataError
from modalities.data.cache import user_cache
from modalities.data.selection import digest

# Offsets and sizes in bytes; an offset of 0 stands for a member that is not there (a tar begins with a header), and
# `name` is where the name of the media ends in all names together.
SAMPLE = np.dtype(
    [(part, np.int64) for part in ("media", "media_size", "json", "json_size", "text", "text_size", "name")]
)

FOLDER = ".selfflow-index"
# Format, the tar's size and time, samples found and taken, bytes of notes and names, digest of what follows the notes,
# and a checksum of head and notes.
_HEAD = struct.Struct("<8sqqqqqq16sI")
_FORMAT = b"selftar1"
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_IN_PARALLEL = 64  # tars from which on several processes scan


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarTable:
    """The samples of one tar.

    Attributes:
        samples: (samples,) SAMPLE.
        names: of the media members, one after another, UTF-8.
        found: samples before a selection.
        labels: class names among them.
        damage: why the tar ends early, which costs one more record; "" for a whole one.
    """

    samples: np.ndarray
    names: bytes
    found: int
    labels: tuple[str, ...] = ()
    damage: str = ""

    def name(self, row: int) -> str:
        """Of the media member."""
        start = int(self.samples["name"][row - 1]) if row else 0
        return self.names[start : int(self.samples["name"][row])].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Summary:
    """What memory keeps of a tar.

    Attributes:
        found, samples: before and after a selection; the latter counts one record more where the tar is damaged.
        labels, damage: of its table.
        digest: of the table.
    """

    found: int
    samples: int
    labels: tuple[str, ...]
    damage: str
    digest: bytes


def key_of(name: str) -> str:
    """The key of a sample: the path of a member up to the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def scan(path: Path) -> tuple[list[Member], str]:
    """The regular files of a tar, in order, and why it ends early ("" if it does not).

    Raises DataError for a file that is no uncompressed tar at all.
    """
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression, which allows no random access
            damage = ""
            try:
                for info in tar:
                    if info.isfile():
                        members.append(Member(info.name.removeprefix("./"), info.offset_data, info.size))
                    tar.members.clear()  # or they all stay in memory
            except tarfile.TarError as error:
                damage = str(error)
            end = tar.offset
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: {_compression(path) or f'not an uncompressed tar, or damaged: {error}'}") from error
    # tarfile takes a damaged or cut header after the first one for the end; a true end is a block of zeros.
    if damage or mark != bytes(tarfile.BLOCKSIZE):
        after = members[-1].name if members else "no file"
        damage = f"{path}: damaged or cut short at byte {min(end, size)}, after {after}: " + (
            damage or "neither a header nor an end mark is there"
        )
        members = [member for member in members if member.offset + member.size <= size]
    return members, damage


def _compression(path: Path) -> str:
    """What is wrong with a compressed tar, "" for any other file."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(6)
        for mark, name in _COMPRESSIONS.items():
            if start.startswith(mark):
                return f"compressed with {name}, which allows no random access; decompress it once"
    return ""


def read_table(path: Path, suffixes: tuple[str, ...], pattern: str) -> TarTable:
    """The samples of a tar in the order of their media, by a scan.

    Args:
        suffixes: of the media, in lower case.
        pattern: that the media's path inside the tar must match; "" takes all.

    Raises DataError for two media of one sample.
    """
    try:
        members, damage = scan(path)
    except DataError as error:
        members, damage = [], str(error)
    media: dict[str, Member] = {}
    beside: dict[str, dict[str, Member]] = {}
    for member in members:
        if member.name.rpartition("/")[2].startswith("."):
            continue
        key, suffix = key_of(member.name), Path(member.name).suffix.lower()
        if suffix in suffixes and (not pattern or fnmatchcase(member.name, pattern)):
            if key in media:
                raise DataError(
                    f"{path}: sample {key!r} has two media members, {media[key].name} and {member.name}; "
                    "choose one kind with `members`"
                )
            media[key] = member
        elif suffix in (".json", ".txt"):
            beside.setdefault(key, {})[suffix] = member
    samples, names, end = np.zeros(len(media), SAMPLE), [], 0
    absent = Member("", 0, 0)
    for row, (key, member) in enumerate(media.items()):
        fields, lines = (beside.get(key, {}).get(suffix, absent) for suffix in (".json", ".txt"))
        names.append(member.name.encode("utf-8", "surrogateescape"))
        end += len(names[-1])
        samples[row] = (member.offset, member.size, fields.offset, fields.size, lines.offset, lines.size, end)
    return TarTable(samples, b"".join(names), len(media), damage=damage)


class TarIndex:
    """Tables of tars, kept in files.

    Args:
        make: path -> table, by a scan; may be sent to another process.
        settings: whatever else the tables depend on.
    """

    def __init__(self, make: Callable[[Path], TarTable], *settings: str):
        self._make, self._name = make, digest("tar index", *settings)

    def summaries(self, paths: list[Path]) -> list[Summary]:
        """Of all tars; those without a valid index are scanned, by several processes if they are many.

        Raises DataError for what `make` refuses.
        """
        found = [self._head(path) for path in paths]
        todo = [number for number, summary in enumerate(found) if summary is None]
        tasks = [paths[number] for number in todo]
        workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        many = len(todo) >= _IN_PARALLEL and workers > 1
        with (
            ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) if many else nullcontext() as pool,
            tqdm(total=len(todo), unit="tar", desc="indexing", disable=len(todo) < _IN_PARALLEL) as bar,
        ):
            made = pool.map(self._build, tasks, chunksize=4) if many else map(self._build, tasks)
            for number, summary in zip(todo, made, strict=True):
                found[number] = summary
                bar.update()
        return found

    def load(self, path: Path, content: bytes) -> TarTable:
        """The table of one tar with the digest of its summary, from a file or by another scan.

        Raises DataError where there is no such table any more.
        """
        for place in (*self._places(path), None):
            try:
                summary, table = _parse_table(self._write(path) if place is None else place.read_bytes())
            except (OSError, EOFError, ValueError):
                continue
            if summary.digest == content:
                return table
        raise DataError(f"{path}: has changed since it was opened")

    def _build(self, path: Path) -> Summary:
        return _parse_head(self._write(path)).summary

    def _write(self, path: Path) -> bytes:
        """Scan a tar; the content of its index file, which is also written where that is possible."""
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        data = _pack(self._make(path), state)
        for place in self._places(path):
            part = place.with_name(f"{place.name}.{os.getpid()}")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(data)
                os.replace(part, place)
            except OSError:
                with suppress(OSError):
                    part.unlink()
                continue  # a folder that cannot be written: try the other; without any, each process scans for itself
            break
        return data

    def _head(self, path: Path) -> Summary | None:
        """From the index file of a tar, None where there is none that holds for the tar as it is now."""
        for place in self._places(path):
            try:
                with open(place, "rb") as file:
                    data = file.read(4096)
                    try:
                        head = _parse_head(data)
                    except EOFError as error:  # the notes are longer
                        head = _parse_head(data + file.read(error.args[0] - len(data)))
                state = path.stat()
            except (OSError, EOFError, ValueError):
                continue
            if (head.size, head.time) == (state.st_size, state.st_mtime_ns):
                return head.summary
        return None

    def _places(self, path: Path) -> tuple[Path, Path]:
        folder = path.parent.resolve()
        name = f"{path.name}.{self._name}"
        return folder / FOLDER / name, user_cache("tar-index") / digest(str(folder)) / name


def _pack(table: TarTable, state: os.stat_result) -> bytes:
    notes = json.dumps({"labels": table.labels, "damage": table.damage}).encode()
    rows = table.samples.tobytes()
    content = _content(rows, table.names, table.damage)
    numbers = state.st_size, state.st_mtime_ns, table.found, len(table.samples), len(notes), len(table.names)
    head = _HEAD.pack(_FORMAT, *numbers, content, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head + notes)) + notes + rows + table.names


@dataclass(frozen=True)
class _Head:
    """The beginning of an index file: the tar's size and time, the table's summary, and where its parts lie."""

    size: int
    time: int
    summary: Summary
    rows: slice
    names: slice


def _parse_head(data: bytes) -> _Head:
    """Raises EOFError with the number of bytes that are needed, ValueError for anything that is no valid head."""
    if len(data) < _HEAD.size or data[: len(_FORMAT)] != _FORMAT:
        raise ValueError("not an index")
    _, size, time, found, taken, noted, named, content, checksum = _HEAD.unpack_from(data)
    start = _HEAD.size + noted
    if not 0 <= noted < 2**30:
        raise ValueError("damaged")
    if len(data) < start:
        raise EOFError(start)
    notes = data[_HEAD.size : start]
    if zlib.crc32(data[: _HEAD.size - 4] + notes) != checksum:
        raise ValueError("damaged")
    fields = json.loads(notes)
    damage = fields["damage"]
    summary = Summary(found, taken + bool(damage), tuple(fields["labels"]), damage, content)
    end = start + taken * SAMPLE.itemsize
    return _Head(size, time, summary, slice(start, end), slice(end, end + named))


def _parse_table(data: bytes) -> tuple[Summary, TarTable]:
    """The table of an index file. Raises EOFError or ValueError for a damaged one."""
    head = _parse_head(data)
    rows, names, summary = data[head.rows], data[head.names], head.summary
    if len(data) != head.names.stop or _content(rows, names, summary.damage) != summary.digest:
        raise ValueError("damaged")
    return summary, TarTable(np.frombuffer(rows, SAMPLE), names, summary.found, summary.labels, summary.damage)


def _content(rows: bytes, names: bytes, damage: str) -> bytes:
    return hashlib.blake2b(rows + names + damage.encode(), digest_size=16).digest()
