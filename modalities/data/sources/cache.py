"""A folder of files that many processes fill and read at once, kept below a size by dropping the least recently used.

A file appears under its name only when it is complete, so a process that is killed leaves nothing that another takes
for whole. Locks are byte ranges of one lock file: the kernel frees them when a process ends, however it ends.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import ConfigError, DataError
from core.keys import key

_LOCK = ".lock"
_PART = ".part"
_ABANDONED = 3600.0  # seconds after which an unfinished file belongs to a process that is gone
_UNITS = {"": 1, "b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "100gb", "1.5 TB" or "4096" (powers of 1024). Raises ConfigError for anything else, and for 0."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b?)\s*", str(text).lower())
    size = 0
    if found:
        unit = found[2] if found[2].endswith("b") or not found[2] else found[2] + "b"
        size = round(float(found[1]) * _UNITS[unit])
    if size < 1:
        raise ConfigError(f"{text!r} is not a size; write it as 500mb, 100gb or 2tb")
    return size


class FileCache:
    """Files by name in a folder.

    The limit holds for the whole folder, whoever fills it; it is exceeded by at most the one file that each process
    may be fetching at the moment.

    Args:
        folder: made when the first file is fetched.
        limit: bytes, or None for no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = folder, limit

    def get(self, name: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """The file `name`, which may be gone later if there is a limit: then ask again.

        Args:
            name: a relative path.
            size: bytes that it will take.
            fetch: writes the complete file to the path that it is given, and raises DataError where it cannot.

        Raises DataError where the file cannot be made; for a full disk the message names the folder.
        """
        path = self.folder / name
        if touch(path):
            return path
        part = path.with_name(path.name + _PART)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(self.folder / _LOCK, "a+b") as lock:
                _lock(lock, 1 + key("file", name) % 2**40)  # several processes want one file: the first fetches it
                if touch(path):
                    return path
                if self.limit is not None:
                    self._make_room(lock, size, self.limit)
                part.unlink(missing_ok=True)  # of a process that was killed
                try:
                    fetch(part)
                    os.replace(part, path)
                finally:
                    for left in part.parent.glob(part.name + "*"):
                        left.unlink(missing_ok=True)
        except OSError as error:
            if is_full(error):
                raise DataError(
                    f"{self.folder}: the disk is full while caching {name} ({size:,} bytes); free some space, set "
                    f"`cache_limit`, or another folder as `cache`"
                ) from error
            raise DataError(f"{path}: cannot be cached: {error}") from error
        return path

    def drop(self, name: str) -> None:
        """Remove a file that turned out to be damaged."""
        (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, lock, size: int, limit: int) -> None:
        _lock(lock, 0)
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                try:
                    state = os.stat(os.path.join(folder, name))
                except FileNotFoundError:
                    continue  # just finished or dropped by another process
                found.append((state.st_mtime, state.st_size, Path(folder, name)))
        used = sum(entry[1] for entry in found)
        for last_use, taken, path in sorted(found):
            if used + size <= limit:
                break
            # What is being fetched may have files of its own beside it, such as NAME.part.zip.
            if path.name == _LOCK or (_PART in path.suffixes and time.time() - last_use < _ABANDONED):
                continue
            path.unlink(missing_ok=True)
            used -= taken
        _unlock(lock, 0)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def touch(path: Path) -> bool:
    """Note a use in the file's time; False where there is no such file."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return path.is_file()  # a cache that another user filled is read without the note
    return True


def _lock(file, place: int) -> None:
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_EX, 1, place)


def _unlock(file, place: int) -> None:
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
