"""A run that hangs is ended, and leaves the stacks of all its threads: a collective whose other side is gone, a file
system that never answers, a deadlock.

It needs nothing of Python to speak, so it also sees a C function that holds Python's lock: faulthandler's thread writes
the stacks, and a timer of the C library ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import IO

from core.errors import AccidentError
from core.training.alarm import Alarm

FOLDER = "stacks"
_GRACE = 5.0  # seconds for the stacks of all processes: where the first one ends, its launcher kills the others
_RARELY = 0.1  # share of the limit that must be over before the clock is set back, which costs about 0.2 ms


@dataclass
class WatchdogConfig:
    """A run without progress ends with exit code 75 and its stacks in RUN/stacks.

    Attributes:
        start: seconds that loading a checkpoint may take, a first step with its compilation, for each stream, and a
            checkpoint, preview or validation; 0 for no limit.
        step: seconds that any other step may take, together with waiting for its data; 0 for no limit.
    """

    start: float = 1800.0
    step: float = 600.0

    def problems(self) -> list[str]:
        names = ("start", "step")
        return [f"{n}: {getattr(self, n)} must not be negative" for n in names if getattr(self, n) < 0]


class Watchdog:
    """Open while a run trains; what comes next is passed to `start` and `step`.

    Args:
        file: for the stacks of this process; its folder is created, and it is removed where nothing was written.
        late: called some seconds before the end, where Python still works.
        advice: what else is reported then.
    """

    def __init__(self, config: WatchdogConfig, file: Path, late: Callable[[], None], advice: str = ""):
        self.config, self.file, self._late = config, file, late
        limits = f"training.watchdog.start={config.start:g}, training.watchdog.step={config.step:g}"
        self._text = (
            f"hung: no progress for longer than {limits} (seconds) allow; where it stood is in {file}. {advice}"
        )
        self._seen: set[str] = set()
        self._limit, self._set_at = 0.0, 0.0
        self._alarm: Alarm | None = None
        self._stacks: IO[bytes] | None = None
        self._closed = Event()

    def __enter__(self) -> Watchdog:
        if self.config.start or self.config.step:
            with contextlib.suppress(OSError):  # a full disk is reported by what needs it
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._stacks = self.file.open("wb", buffering=0)
            self._alarm = Alarm(AccidentError.exit_code, self._text.strip())
            self._closed.clear()
            Thread(target=self._watch, daemon=True, name="watchdog").start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._set(0.0)
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
        if self._stacks is not None:
            self._stacks.close()
            self._stacks = None
            with contextlib.suppress(OSError):
                if not self.file.stat().st_size:
                    self.file.unlink()
                    self.file.parent.rmdir()  # unless another process has left something

    def start(self) -> None:
        """Something that takes long begins."""
        self._set(self.config.start)

    def step(self, stream: str = "") -> None:
        """A step of a stream begins; without a name, waiting for its data does."""
        first = bool(stream) and stream not in self._seen
        self._seen.add(stream)
        self._set(self.config.start if first else self.config.step)

    def _set(self, limit: float) -> None:
        now = time.monotonic()
        if self._alarm is None or (limit == self._limit and now - self._set_at < _RARELY * limit):
            return
        self._limit, self._set_at = limit, now
        if not limit:
            faulthandler.cancel_dump_traceback_later()
            self._alarm.clear()
            return
        if self._stacks is not None:
            faulthandler.dump_traceback_later(limit, file=self._stacks)
        self._alarm.set(limit + _GRACE)

    def _watch(self) -> None:
        while not self._closed.wait(0.5):
            if self._limit and time.monotonic() - self._set_at > self._limit:
                self._late()
                return
