"""Files that are on the disk when the call returns, so that what is published after them never lies."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from core.errors import DataError


@contextmanager
def writing(path: Path, note: str = "") -> Generator[None, None, None]:
    """Turns a full disk, a read-only folder and the like into a DataError of one line: `path`, the reason, `note`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be written: {reason}{note}") from error


def write_durably(path: Path, text: str) -> None:
    """UTF-8. The name itself is durable once its folder has been given to `sync`."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems have no fsync of folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
