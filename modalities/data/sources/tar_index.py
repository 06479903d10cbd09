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
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from core.errors import DataError
from core.progress import ProgressBar
from core.user_cache import user_cache
from modalities.data.sources.account import Account
from modalities.data.sources.names import (
    INDEX_FOLDER,
    composed,
    in_hidden,
    leave_hidden,
    other_suffix,
    stem_of,
    suffix_of,
)
from modalities.data.sources.selection import digest
from modalities.data.sources.sidecars import SIDECARS
from modalities.data.sources.tar_scan import Member, key_of, scan

# Offsets and sizes in bytes; an offset of 0 stands for a member that is not there (a tar begins with a header), and
# `name` is where the name of the media ends in all names together.
SAMPLE = np.dtype(
    [(part, np.int64) for part in ("media", "media_size", "json", "json_size", "text", "text_size", "name")]
)

# Sidecars of other suffixes, which few tars have: the sample, the place of the suffix in SIDECARS, and the bytes.
EXTRA = np.dtype([(part, np.int64) for part in ("row", "suffix", "offset", "size")])

FOLDER = INDEX_FOLDER
# Format, the tar's size and time, samples found and taken, bytes of notes and names, digest of what follows the notes,
# and a checksum of head and notes.
_HEAD = struct.Struct("<8sqqqqqq16sI")
_FORMAT = b"selftar2"
_IN_PARALLEL = 64  # tars from which on several processes scan


@dataclass(frozen=True)
class TarTable:
    """The samples of one tar.

    Attributes:
        samples: (samples,) SAMPLE.
        names: of the media members, one after another, UTF-8.
        found: samples before a selection.
        extra: (sidecars,) EXTRA, by their rows: those that `samples` has no place for.
        labels: class names among them.
        damage: why the tar ends early, which costs one more record; "" for a whole one.
        account: what is left out.
    """

    samples: np.ndarray
    names: bytes
    found: int
    extra: np.ndarray = field(default_factory=lambda: np.zeros(0, EXTRA))
    labels: tuple[str, ...] = ()
    damage: str = ""
    account: Account = field(default_factory=Account)

    def name(self, row: int) -> str:
        """Name of the media member."""
        start = int(self.samples["name"][row - 1]) if row else 0
        return self.names[start : int(self.samples["name"][row])].decode("utf-8", "surrogateescape")

    def sidecars(self, row: int) -> dict[str, tuple[int, int]]:
        """Suffix -> offset and size of each sidecar, in the order of SIDECARS."""
        sample = self.samples[row]
        found = {".json": (sample["json"], sample["json_size"]), ".txt": (sample["text"], sample["text_size"])}
        first, end = np.searchsorted(self.extra["row"], (row, row + 1))
        found |= {SIDECARS[one["suffix"]]: (one["offset"], one["size"]) for one in self.extra[first:end]}
        return {
            suffix: (int(found[suffix][0]), int(found[suffix][1]))
            for suffix in SIDECARS
            if suffix in found and found[suffix][0]
        }


@dataclass(frozen=True)
class Summary:
    """What is known of a tar without its table.

    Attributes:
        found, samples: before and after a selection; the latter counts one record more where the tar is damaged.
        labels, damage, account: of its table.
        digest: of the table.
    """

    found: int
    samples: int
    labels: tuple[str, ...]
    damage: str
    account: Account
    digest: bytes


def read_table(path: Path, modality: str, suffixes: tuple[str, ...], pattern: str) -> TarTable:
    """The samples of a tar in the order of their media, by a scan.

    The sidecars of a medium have its name without the last suffix, or the key of the sample, and then one suffix:
    `1.ocr.txt` is no caption of `1.jpg`.

    Args:
        suffixes: of the media, in lower case.
        pattern: that the media's path inside the tar must match; "" takes all.

    Raises DataError for two media of one sample.
    """
    try:
        members, damage, account = scan(path)
    except DataError as error:
        members, damage, account = [], str(error), Account()
    media: dict[str, Member] = {}
    beside: dict[str, list[Member]] = {}
    for member in members:
        key, suffix = composed(key_of(member.name)), suffix_of(member.name)
        if in_hidden(member.name):
            leave_hidden(account, member.name, folder=False)
        elif suffix in suffixes and (not pattern or fnmatchcase(member.name, pattern)):
            media[key] = _one_of(path, media[key], member, account) if key in media else member
        elif suffix in suffixes:
            account.leave(f"{suffix} (not of `members`)", member.name)
        elif suffix in SIDECARS:
            beside.setdefault(key, []).append(member)
        else:
            account.leave(other_suffix(member.name, modality), member.name)
    samples, names, extra, end = np.zeros(len(media), SAMPLE), [], [], 0
    absent = Member("", 0, 0)
    for row, (key, member) in enumerate(media.items()):
        found = _sidecars(member, key, beside.pop(key, ()), account)
        account.uncaptioned += found.keys() <= {".cls"}
        fields, lines = (found.pop(suffix, absent) for suffix in (".json", ".txt"))
        extra += [(row, SIDECARS.index(suffix), one.offset, one.size) for suffix, one in found.items()]
        names.append(member.name.encode("utf-8", "surrogateescape"))
        end += len(names[-1])
        samples[row] = (member.offset, member.size, fields.offset, fields.size, lines.offset, lines.size, end)
    for member in (member for rest in beside.values() for member in rest):
        account.leave(f"{suffix_of(member.name)} (no {modality} of that name)", member.name)
    sidecars = np.array(extra, EXTRA)
    return TarTable(samples, b"".join(names), len(media), sidecars, damage=damage, account=account)


def _one_of(path: Path, first: Member, second: Member, account: Account) -> Member:
    """Which of two media of one sample is taken. Raises DataError where the names do not say."""
    if first.name == second.name:
        account.leave("file| that a later one of the same name replaces", first.name)
        return second
    exact = [member for member in (first, second) if stem_of(member.name) == key_of(member.name)]
    if len(exact) != 1:
        raise DataError(
            f"{path}: sample {key_of(first.name)!r} has two media members, {first.name} and {second.name}; choose one "
            "kind with `members`"
        )
    other = second if exact[0] is first else first
    account.leave(f"{_after_key(other.name)} (beside KEY{suffix_of(exact[0].name)})", other.name)
    return exact[0]


def _sidecars(media: Member, key: str, beside: Iterable[Member], account: Account) -> dict[str, Member]:
    """Suffix -> member: that of the medium's own stem, or else that of the key."""
    found: dict[str, Member] = {}
    stem = composed(stem_of(media.name))
    for member in beside:
        suffix, own = suffix_of(member.name), composed(stem_of(member.name))
        if own != stem and own != key:
            account.leave(f"{_after_key(member.name)} (not KEY{suffix})", member.name)
        elif suffix not in found or own == stem:
            found[suffix] = member
    return found


def _after_key(name: str) -> str:
    return name[len(key_of(name)) :].lower()


class TarIndex:
    """Tables of tars, kept in files.

    Args:
        make: path -> table, by a scan; may be sent to another process.
        settings: whatever else the tables depend on.
    """

    def __init__(self, make: Callable[[Path], TarTable], *settings: str):
        self._make, self._name = make, digest("tar index", *settings)

    def summaries(self, paths: list[Path]) -> list[Summary]:
        """Summaries of all tars; those without a valid index are scanned, by several processes if they are many.

        Raises DataError for what `make` refuses.
        """
        found = [self._head(path) for path in paths]
        todo = [number for number, summary in enumerate(found) if summary is None]
        tasks = [paths[number] for number in todo]
        workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        many = len(todo) >= _IN_PARALLEL and workers > 1
        with (
            ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) if many else nullcontext() as pool,
            ProgressBar(total=len(todo), unit="tar", desc="indexing", disable=len(todo) < _IN_PARALLEL) as bar,
        ):
            made = map(self._build, tasks) if pool is None else pool.map(self._build, tasks, chunksize=4)
            scanned = {}
            for number, summary in zip(todo, made, strict=True):
                scanned[number] = summary
                bar.update()
        return [scanned[number] if summary is None else summary for number, summary in enumerate(found)]

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
    told = {"labels": table.labels, "damage": table.damage, "account": table.account.to_plain()}
    notes = json.dumps(told).encode()
    rows, extra = table.samples.tobytes(), table.extra.tobytes()
    content = _content(rows, table.names, table.damage, extra)
    numbers = state.st_size, state.st_mtime_ns, table.found, len(table.samples), len(notes), len(table.names)
    head = _HEAD.pack(_FORMAT, *numbers, content, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head + notes)) + notes + rows + table.names + extra


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
    told = json.loads(notes)
    damage, account = told["damage"], Account.from_plain(told["account"])
    summary = Summary(found, taken + bool(damage), tuple(told["labels"]), damage, account, content)
    end = start + taken * SAMPLE.itemsize
    return _Head(size, time, summary, slice(start, end), slice(end, end + named))


def _parse_table(data: bytes) -> tuple[Summary, TarTable]:
    """The table of an index file. Raises EOFError or ValueError for a damaged one."""
    head = _parse_head(data)
    rows, names, extra, summary = data[head.rows], data[head.names], data[head.names.stop :], head.summary
    if len(extra) % EXTRA.itemsize or _content(rows, names, summary.damage, extra) != summary.digest:
        raise ValueError("damaged")
    sidecars = np.frombuffer(extra, EXTRA)
    samples = np.frombuffer(rows, SAMPLE)
    return summary, TarTable(samples, names, summary.found, sidecars, summary.labels, summary.damage, summary.account)


def _content(rows: bytes, names: bytes, damage: str, extra: bytes) -> bytes:
    return hashlib.blake2b(rows + names + damage.encode() + extra, digest_size=16).digest()
