"""Lines for the person at the terminal. Printing one never ends a run: the log may lie on a full disk, or the reader of
a pipe may be gone."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import torch.distributed as dist


class Outliving:
    """A text stream whose failed writes are forgotten."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # full, gone, or closed
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __eq__(self, other: object) -> bool:
        """tqdm looks whether a line and a bar go to one stream, so that it can take the bar out of the way."""
        return self._stream is getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return id(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(line: str, everywhere: bool = False) -> None:
    """One line to stderr, also while a progress bar is shown, and never an error. Of the processes of a run, the first
    one says it, or each one."""
    from tqdm import tqdm

    if not everywhere and dist.is_initialized() and dist.get_rank() > 0:
        return
    tqdm.write(line, file=Outliving(sys.stderr))
