"""Files that are on the disk when the call returns, so that what is published after them never lies."""

from __future__ import annotations

import os
from pathlib import Path


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
