"""Encoded data in chunks of a fixed number of records, each either complete or absent.

A chunk is written in a folder aside, made durable, and renamed. So a process may be killed at any moment, several may
work on different chunks of one folder, and what is done is what has its final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.durable import sync, write_durably
from core.errors import ConfigError, DataError
from core.optional import need
from core.training.config import differences
from modalities.latents.bad import one_each
from modalities.latents.format import MANIFEST

SETTINGS = "encode.json"
QUARANTINE = "quarantine.jsonl"
SHARD_BYTES = 1 << 26
# What the settings are called on the command line, for messages.
OPTIONS = {"views": "--views", "chunk": "--chunk", "dtype": "--dtype", "text": "--text"}


def mds_writer() -> type:
    """mosaicml-streaming's writer. Raises ConfigError where the package is missing."""
    module = "streaming.base.format.mds.writer"
    return need(module, "encoded data", "Training on folders, tars and Parquet files works").MDSWriter


@dataclass(frozen=True)
class Chunk:
    """A finished chunk.

    Attributes:
        bad: records that could not be used, or not in all views: index, views, key, origin and reason of each.
        labels: class names, sorted.
        moments: part of the samples -> count, mean and squares of its latents where they are measured, see
            autoencoders.base.Moments.
        shards: entries of the chunk's index.json.
    """

    number: int
    samples: int
    bad: list[dict[str, Any]]
    labels: list[str]
    moments: dict[str, dict[str, Any]]
    shards: list[dict[str, Any]]


class ChunkFolder:
    """The folder of one stream.

    Args:
        settings: what the chunks depend on. An existing folder with other settings is refused, by name.
        count: chunks in all.
    """

    def __init__(self, path: Path, settings: dict[str, Any], count: int):
        self.path, self.settings, self.count = path, settings, count

    def open(self) -> None:
        """Make the folder, or check that it was begun with the same settings. Raises ConfigError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: {self.path} cannot be made: {error.strerror}") from error
        file = self.path / SETTINGS
        if not file.exists():
            found = sorted(each.name for each in self.path.iterdir() if not each.name.startswith("."))
            if found and not file.exists():  # else another process has begun it meanwhile
                raise ConfigError(f"--out: {self.path} is not empty (it holds {', '.join(found[:5])})")
            aside = self._aside(SETTINGS)
            write_durably(aside, json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n")
            try:
                os.link(aside, file)  # the first of several processes wins; the others compare with it
            except FileExistsError:
                pass
            finally:
                aside.unlink()
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{file}: not valid JSON ({error}); use another folder") from error
        if changed := differences(known, json.loads(json.dumps(self.settings))):
            raise ConfigError(
                [
                    f"{OPTIONS.get(key, key)}: {old!r} when {self.path} was begun, {new!r} now"
                    for key, old, new in changed
                ]
                + ["Data are encoded with one set of settings; use another folder."]
            )
        self._remove_left_overs()

    def name(self, number: int) -> str:
        return f"chunk-{number:05}"

    @property
    def quarantine(self) -> Path:
        """Lists the records that could not be used."""
        return self.path / QUARANTINE

    def there(self) -> set[int]:
        """Numbers of the finished chunks."""
        names = {each.name for each in self.path.iterdir()}
        return {number for number in range(self.count) if self.name(number) in names}

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there yet, in order."""
        return sorted(set(range(self.count)) - self.there())

    def discard(self, number: int) -> None:
        """Take a finished chunk away, to be made again. The manifest goes first: it would not be true any more."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        aside = self._aside(self.name(number))
        remove(aside)
        os.rename(self.path / self.name(number), aside)  # at once, so that a kill leaves no half of it
        remove(aside)

    def read(self, number: int) -> Chunk:
        folder = self.path / self.name(number)
        try:
            about = json.loads((folder / "chunk.json").read_text(encoding="utf-8"))
            shards = json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"]
            settings, about["bad"] = about.pop("settings"), joined(about["bad"])
            chunk = Chunk(number=number, shards=shards, **about)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder}: damaged ({error}); remove it and encode again to have it made anew") from error
        if settings != self.digest():
            raise DataError(
                f"{folder}: was made with other settings than {SETTINGS} beside it has; remove it and encode again to "
                "have it made anew"
            )
        return chunk

    def digest(self) -> str:
        """Digest of the settings. Every chunk has it, since chunks of several folders may be gathered in one."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def start(self, number: int, columns: dict[str, str]) -> ChunkWriter:
        return ChunkWriter(self, number, columns)

    def note_bad(self, bad: Iterable[dict[str, Any]]) -> None:
        """Append the records that are not there yet to quarantine.jsonl.

        One write, so that lines of several processes do not mix.
        """
        noted = {entry["index"] for entry in self.noted()}
        if lines := "".join(json.dumps(entry) + "\n" for entry in bad if entry["index"] not in noted):
            with self.quarantine.open("a", encoding="utf-8") as file:
                file.write(lines)

    def noted(self) -> list[dict[str, Any]]:
        """The entries of quarantine.jsonl, one for each record."""
        return read_quarantine(self.path)

    def publish(self, name: str, text: str) -> None:
        """Write a file of the folder so that a killed process leaves the old one or the new one."""
        aside = self._aside(name)
        write_durably(aside, text)
        os.replace(aside, self.path / name)
        sync(self.path)

    def _aside(self, name: str) -> Path:
        return self.path / f".{name}.{platform.node()}-{os.getpid()}"

    def _remove_left_overs(self) -> None:
        """What killed processes of this machine were writing. Those of others go when everything is done."""
        for path in self.path.glob(f".*.{platform.node()}-*"):
            number = path.name.rpartition("-")[2]
            if number.isdigit() and not is_running(int(number)):
                remove(path)

    def remove_all_left_overs(self) -> None:
        for path in self.path.glob(".chunk-*"):
            remove(path)


def read_quarantine(folder: Path) -> list[dict[str, Any]]:
    """The records that a folder's quarantine.jsonl names; a line that a kill cut short is left out."""
    path, found = folder / QUARANTINE, []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return joined(found)


def joined(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each record; earlier versions wrote one for each view, under "view"."""
    return one_each({"views": [entry.pop("view")], **entry} if "view" in entry else entry for entry in entries)


class ChunkWriter:
    """Writes one chunk. `finish` publishes it, `abandon` leaves nothing."""

    def __init__(self, folder: ChunkFolder, number: int, columns: dict[str, str]):
        self.folder, self.number = folder, number
        self.aside = folder._aside(folder.name(number))
        remove(self.aside)
        self.samples = 0
        self._writer = mds_writer()(
            columns=columns, out=str(self.aside), hashes=["sha256"], size_limit=SHARD_BYTES, max_workers=1
        )

    def add(self, rows: list[dict[str, Any]]) -> int:
        """Write rows; returns their size in bytes."""
        before = self._writer.new_shard_size
        shards = len(self._writer.shards)
        for row in rows:
            self._writer.write(row)
        self.samples += len(rows)
        full = sum(shard["raw_data"]["bytes"] for shard in self._writer.shards[shards:])
        return full + self._writer.new_shard_size - before

    def finish(self, bad: list[dict[str, Any]], labels: list[str], moments: dict[str, dict[str, Any]]) -> None:
        target = self.folder.path / self.folder.name(self.number)
        about = {"samples": self.samples, "bad": bad, "labels": labels, "moments": moments}
        about["settings"] = self.folder.digest()
        try:
            self._writer.finish()
            write_durably(self.aside / "chunk.json", json.dumps(about))
            for path in self.aside.iterdir():
                sync(path)
            sync(self.aside)
            os.rename(self.aside, target)
        except OSError:
            # Another process has made the same chunk meanwhile, with the same bytes, and if it was the last one to be
            # missing, has removed this one.
            if not target.exists():
                raise
            remove(self.aside)
        sync(self.folder.path)

    def abandon(self) -> None:
        self._writer.cancel_future_jobs()
        remove(self.aside)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
