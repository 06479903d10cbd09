"""One training process in a run folder at a time.

A POSIX record lock: the kernel releases it when the process ends in any way, also by kill -9, and the loader's workers
do not inherit it, so nothing is ever left to clean up.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has other locks; there, nothing watches
    fcntl = None


class FolderLock:
    """Holds `folder/run.lock` until `release`, or the end of the process.

    A second lock of the same process is not refused: POSIX knows processes, not objects.

    Raises ConfigError, with who holds it, when another process does. A file system without locks is not watched.
    """

    def __init__(self, folder: Path):
        self._file = (folder / "run.lock").open("a+", encoding="utf-8")
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"run: {folder} is in use by another process ({holder}). Wait for it, stop it, or use another folder"
            ) from error
        except OSError:
            return
        note = f"process {os.getpid()} on {platform.node()}\n".encode()
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, without a name in it
            self._file.truncate(0)
            os.write(self._file.fileno(), note)

    def release(self) -> None:
        self._file.close()
