"""The end of a process at a set time, whatever it is doing: even while a C function holds Python's lock forever.

A timer of the C library calls `_exit` itself, so nothing of Python has to run. Where there is no such timer (outside
of Linux) a thread does it, which needs the lock for a moment.

No handlers run and no buffers are flushed: for files this is a kill, which everything that a run writes outlives.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

_CLOCK_MONOTONIC, _SIGEV_THREAD = 1, 2
_LAST_WORDS = 0.2  # seconds between the text and the end, so that the text is out


class _Event(ctypes.Structure):
    """`struct sigevent` with 64-bit pointers: a thread of its own calls `function(value)`."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: how long between two rings, and until the first; 0 never rings."""

    _fields_ = (
        ("again_seconds", ctypes.c_long),
        ("again_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Alarm:
    """Ends this process with `code` when the seconds of `set` are over, unless it is set again or cleared first.

    `text` is written to stderr shortly before. It belongs to one process: a forked child has none.
    """

    def __init__(self, code: int, text: str):
        self.code, self.text = code, text
        self._timers: list[tuple[_Timer, float]] = []
        self._thread: threading.Timer | None = None
        if sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8:
            # `warnx` is the one function of libc that takes a text alone and writes it unbuffered. It formats.
            self._words = ctypes.create_string_buffer(text.replace("%", "%%").encode())
            self._timers = [
                (_Timer("warnx", ctypes.addressof(self._words)), 0.0),
                (_Timer("_exit", code), _LAST_WORDS),
            ]

    def set(self, seconds: float) -> None:
        """Ring in so many seconds, above 0, from now."""
        for timer, later in self._timers:
            timer.set(seconds + later)
        if not self._timers:
            self.clear()
            self._thread = threading.Timer(seconds, self._ring)
            self._thread.daemon = True
            self._thread.start()

    def clear(self) -> None:
        for timer, _ in self._timers:
            timer.set(0.0)
        if self._thread is not None:
            self._thread.cancel()
            self._thread = None

    def close(self) -> None:
        """Clear it for good."""
        self.clear()
        for timer, _ in self._timers:
            timer.delete()
        self._timers.clear()

    def _ring(self) -> None:
        os.write(2, f"{self.text}\n".encode())
        os._exit(self.code)


class _Timer:
    """A timer of the C library that calls one of its functions with one number."""

    def __init__(self, function: str, value: int):
        self._libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.cast(getattr(self._libc, function), ctypes.c_void_p).value
        event, self._timer = _Event(value=value, notify=_SIGEV_THREAD, function=address), ctypes.c_void_p()
        self._call("timer_create", _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer))

    def set(self, seconds: float) -> None:
        """Ring after so many seconds; 0 not at all."""
        whole = int(seconds)
        times = _Times(seconds=whole, nanoseconds=int((seconds - whole) * 1e9))
        self._call("timer_settime", self._timer, 0, ctypes.byref(times), None)

    def delete(self) -> None:
        self._call("timer_delete", self._timer)

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._libc, name)(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
