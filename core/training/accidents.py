"""Failures of the machine during a run: full disks, read-only folders, killed workers, memory that runs out.

None of them is a mistake in the settings or the code, so none deserves a traceback: the reason is one line, and once it
is gone the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator
from contextlib import contextmanager

import torch

from core.errors import AccidentError

HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "the largest size of a file here is reached (ulimit -f)",
    errno.EROFS: "it was mounted, or has become, read-only",
    errno.EACCES: "this user must be allowed to write there",
    errno.EPERM: "this user must be allowed to write there",
    errno.EIO: "the disk or its connection fails",
    errno.EMFILE: "too many open files (ulimit -n)",
}


@contextmanager
def accidents_named() -> Generator[None, None, None]:
    """Turn failures of the machine into an AccidentError of one line; other errors pass unchanged. Also a decorator."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        what = describe(error)
        if what is None:
            raise
        raise AccidentError(what) from error


def describe(error: BaseException) -> str | None:
    """The accident in one line, with what helps; None for any other error.

    >>> describe(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"))
    'runs/a/metrics.jsonl: No space left on device; free some space'
    """
    if isinstance(error, OSError):
        return _describe_os(error)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "out of memory: use fewer training.workers, or smaller microbatches by a larger training.accumulate"
    if isinstance(error, torch.OutOfMemoryError):
        first = text.partition(". ")[0].rstrip(".")
        return f"{first}: use smaller microbatches by --change training.accumulate=NUMBER, or training.precision=bf16"
    if isinstance(error, RuntimeError) and (
        found := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)(.*)", text)
    ):
        return _describe_worker(found[1].strip(), found[2].strip(" ."))
    return None


def _describe_os(error: OSError) -> str | None:
    if error.errno is None:
        return None
    what = error.strerror or os.strerror(error.errno)
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hint = HINTS.get(error.errno)
    return f"{where}{what}{f'; {hint}' if hint else ''}"


def _describe_worker(numbers: str, how: str) -> str:
    hint = ""
    if "Killed" in how:
        hint = "; often the kernel, when memory runs out: try fewer training.workers"
    elif "Bus error" in how:
        hint = "; shared memory is full: enlarge /dev/shm, or training.workers=0"
    return f"a data worker (process {numbers}) {how or 'ended unexpectedly'}{hint}"
