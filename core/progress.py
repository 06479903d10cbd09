"""Progress bars that suit where they go: a terminal of any width, a notebook, a log file, or nowhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

QUIET = "SELFFLOW_QUIET"  # of the environment, so that processes of a loader have it, too
LINE_EVERY = 30.0  # seconds between lines in a file
NARROW = 60  # columns; below them the bar itself is left out
LINE = "{desc}{n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"


if TYPE_CHECKING:
    Bar = tqdm[Any]
else:
    Bar = tqdm  # generic in its stubs alone


class ProgressBar(Bar):
    """As tqdm. In a file or a pipe it writes one line now and then, and a last one, in place of a bar that returns to
    the beginning of its line; on a narrow terminal the numbers alone; under `quiet` nothing.
    """

    def __init__(self, *args: Any, **settings: Any):
        file = settings.get("file") or sys.stderr
        self.lines, self.written = not (is_terminal(file) or is_notebook(file)), 0
        if os.environ.get(QUIET):
            settings["disable"] = True
        if settings.get("desc"):
            settings["desc"] += ": "
        if self.lines:
            settings |= {"mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "bar_format": LINE, "file": _Lines(file)}
        else:
            settings.setdefault("dynamic_ncols", True)
        super().__init__(*args, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self.lines:
            self.bar_format = LINE if 0 < (columns(self.fp) or NARROW) < NARROW else None
            return super().display(msg, pos)
        line = (str(self) if msg is None else msg).strip()
        if self.n != self.written and line:  # nothing is known before the first step
            self.fp.write(f"{line}\n")
            self.fp.flush()
            self.written = self.n
        return True


class _Lines:
    """A stream without the returns and empty lines by which tqdm ends a bar."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text in ("\n", "\r", "") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # no stream of a system, or a closed one
        return False


def is_notebook(file: Any) -> bool:
    """Whether a stream ends below a cell of a notebook, where a bar can return to the beginning of its line."""
    return type(file).__module__.split(".")[0] == "ipykernel"


def columns(file: Any) -> int | None:
    """Of the terminal of a stream; None where it cannot be asked."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return None


@contextmanager
def quiet(wanted: bool) -> Generator[None]:
    """No progress bars inside, of this process and of those that it starts."""
    before = os.environ.get(QUIET)
    if wanted:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if wanted and before is None:
            os.environ.pop(QUIET, None)
