"""JSON-lines files whose writer survives a full disk: what could not be written waits and is appended later.

Python's own buffers lose text when a write fails in the middle, and would leave a line that later ones are appended to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class LineWriter:
    """Appends to `path`, which is created by the first line that reaches it."""

    def __init__(self, path: Path):
        self.path = path
        self._pending, self._descriptor = bytearray(), -1

    def add(self, entry: dict[str, Any]) -> None:
        """Keep a line in memory until `write`."""
        self._pending += json.dumps(entry).encode() + b"\n"

    def write(self) -> None:
        """Hand all lines to the operating system. After an OSError the rest is kept, and a later call continues with
        it, in the middle of a line if need be."""
        if self._pending and self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        while self._pending:
            del self._pending[: os.write(self._descriptor, self._pending)]

    def sync(self) -> None:
        """Make all lines durable. Raises OSError."""
        self.write()
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file, and drop lines that were never written."""
        self._pending.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON-lines file; a half-written last line is left out, an absent file is empty."""
    if not path.exists():
        return []
    return [entry for _, entry in _parse(path.read_bytes())]


def _parse(data: bytes) -> list[tuple[int, dict[str, Any]]]:
    """(offset of its end, entry) of every whole line, up to the first that is not a JSON object."""
    found, end = [], 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            entry = json.loads(line)
        except ValueError:  # half-written; nothing after it can be trusted
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            break
        found.append((end, entry))
    return found


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool] = lambda entry: True) -> None:
    """Cut a JSON-lines file after the last line of its leading run of `wanted` entries. Atomic: one truncation."""
    if not path.exists():
        return
    data = path.read_bytes()
    keep = 0
    for end, entry in _parse(data):
        if not wanted(entry):
            break
        keep = end
    if keep < len(data):
        with path.open("rb+") as file:
            file.truncate(keep)
            os.fsync(file.fileno())
