"""A request to stop: SIGTERM or Ctrl-C, whatever the run is doing.

What runs either ends soon and is published, or is left. Both are safe, since nothing is ever half-written; so the
question is only what is lost, and that no request is forgotten:

- work that is lost by leaving it is finished first: a step, and a checkpoint that is being written;
- all other work is left at once (`leavable`): the start of a run, previews and validation, waiting for data;
- a step that does not end within `within` seconds, such as one that is being compiled, is left as by a kill.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from core.errors import AccidentError
from core.training.alarm import Alarm

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is Slurm's and submitit's habit
MERGED_SECONDS = 5.0  # a launcher and its scheduler each pass a request on: what comes so soon is the same one
_NO_MORE = b"\0"

Item = TypeVar("Item")


class Stopped(BaseException):
    """Work was left on request. No `Exception`: nothing that goes on after errors may go on after this."""


class StopRequest:
    """While it is open, SIGTERM, SIGINT and SIGUSR1 only set `requested`, to be read at the end of a step.

        with StopRequest() as stop:
            with stop.leavable():
                ...                       # raises Stopped
            for step in ...:
                ...
                if stop.requested:
                    with stop.publishing():
                        ...
                    break

    A second Ctrl-C ends the process at once, and so does any other second signal that comes `MERGED_SECONDS` later or
    more: by that signal, so that the shell sees the usual 128 + number. One that comes sooner changes nothing: Slurm
    and torchrun both send SIGTERM to every process. The previous handlers come back at the end. Outside the main thread
    Python cannot install handlers: the context then does nothing but say so. Data workers that are forked meanwhile
    keep the default SIGTERM, by which they are ended, and leave SIGINT, which a terminal sends to them too, to this
    process.

    Args:
        within: seconds from a request until publishing begins, and from its end until the process does; the process
            is ended where that takes longer, by the exit code of an AccidentError.
        advice: what else is reported then.
    """

    def __init__(self, within: float = 20.0, advice: str = ""):
        self.within, self.advice = within, advice
        self.reason = ""  # name of the signal
        self._requested_at: float | None = None
        self._leavable = self._publishing = self._hurried = False
        self._previous, self._owner = {}, os.getpid()
        self._watcher: _Watcher | None = None
        self._lock = threading.RLock()  # a handler may interrupt its holder

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._requested_at is not None

    @contextmanager
    def leavable(self, may: bool = True) -> Generator[None, None, None]:
        """Work that nothing is lost by leaving: a request raises Stopped in it, or at once if there has been one.

        Args:
            may: whether this process can leave it: not where others wait for its part.
        """
        self._leavable = may
        try:
            self._leave_if_requested(may)
            yield
            self._leave_if_requested(may)  # some libraries swallow what is raised inside of their callbacks
        finally:
            self._leavable = False

    def waiting(self, items: Iterable[Item], may: bool = True) -> Generator[Item, None, None]:
        """The items; waiting for each of them is `leavable`."""
        iterator = iter(items)
        while True:
            with self.leavable(may):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def publishing(self) -> Generator[None, None, None]:
        """Work that a request never ends, however long it takes."""
        leavable, self._leavable = self._leavable, False
        with self._lock:
            self._publishing, self._hurried = True, False
            if self._watcher is not None:
                self._watcher.alarm.clear()
        try:
            yield
        finally:
            self._publishing, self._leavable = False, leavable
            if self.requested:
                self._hurry()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            print("not in the main thread: SIGTERM and Ctrl-C will not wait for the end of a step", file=sys.stderr)
            return self
        self._owner = os.getpid()
        text = f"still not at the end {self.within:g} seconds after the request to stop: leaving as by a kill."
        self._watcher = _Watcher(Alarm(AccidentError.exit_code, f"{text} {self.advice}".strip()), self._hurry)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _hurry(self) -> None:
        """From now on, the time until the end is limited."""
        with self._lock:
            if self._watcher is not None and not self._publishing and not self._hurried:
                self._hurried = True
                self._watcher.alarm.set(self.within)

    def _leave_if_requested(self, may: bool) -> None:
        if may and self.requested:
            raise Stopped(self.reason)

    def _receive(self, number: int, _: FrameType | None) -> None:
        worker = os.getpid() != self._owner
        if worker and number == signal.SIGINT:
            return
        if worker or (self.requested and self._is_second(number)):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.requested:
            return
        self._requested_at, self.reason = time.monotonic(), signal.Signals(number).name
        self._hurry()
        what = "leaving" if self._leavable else "stopping after this step with a checkpoint"
        # os.write and not print: a handler may interrupt a print, which would then raise for re-entering it.
        with suppress(OSError):
            os.write(2, f"\n{self.reason}: {what}; Ctrl-C to stop at once\n".encode())
        if self._leavable:
            self._leavable = False
            raise Stopped(self.reason)

    def _is_second(self, number: int) -> bool:
        assert self._requested_at is not None
        return number == signal.SIGINT or time.monotonic() - self._requested_at >= MERGED_SECONDS


class _Watcher:
    """Calls `hurry` at the first signal, also while a C function keeps Python's handlers from running."""

    def __init__(self, alarm: Alarm, hurry: Callable[[], None]):
        self.alarm, self._hurry = alarm, hurry
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stop")
        self._thread.start()

    def _watch(self) -> None:
        while (sent := self._read.recv(1)) not in (b"", _NO_MORE):
            if sent[0] in SIGNALS:
                self._hurry()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._write.setblocking(True)
        self._write.send(_NO_MORE)
        self._thread.join()
        self._read.close()
        self._write.close()
        self.alarm.close()
