"""What the readers of all kinds of media share: packages that may be missing, files that may be broken.

A file is judged by its content, not by its suffix. Whatever cannot be decoded raises DataError with its origin and the
reason. The decoding libraries are imported when first needed, by the process that decodes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from core import optional
from core.errors import DataError, SelfFlowError

Media = bytes | Path | np.ndarray
WITHOUT = {  # what works where a package is missing
    "av": "Images and most audio clips work",
    "soundfile": "Images and videos work",
    "soxr": "Audio clips that have the wanted rate work",
}


def need(module: str) -> ModuleType:
    """A package of `WITHOUT`, or one line that says how to get it."""
    return optional.need(module, "this file", WITHOUT[module])


def open_stream(media: bytes | Path, origin: str) -> io.BytesIO | str:
    """What the decoding libraries open; refuses what is missing or empty."""
    if isinstance(media, bytes):
        size = len(media)
    else:
        try:
            size = media.stat().st_size if not media.is_dir() else None
        except OSError as error:
            raise DataError(f"{origin}: cannot be read: {error.strerror}") from error
        if size is None:
            raise DataError(f"{origin}: is a folder, not a file")
    if size == 0:
        raise DataError(f"{origin}: the file is empty (0 bytes)")
    return io.BytesIO(media) if isinstance(media, bytes) else str(media)


class WindowError(DataError):
    """This window of a file cannot be used: it is damaged or silent. Others of the same file may be fit."""


@contextmanager
def decoding(origin: str, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError: no exception of one file may end a run.

    Args:
        errors: a library's own ones, whose text says enough. Of any other the type is named too, so that a mistake of
            this program is not taken for a damaged file.
    """
    try:
        yield
    except SelfFlowError:
        raise
    except Exception as error:  # decoders raise anything: ZeroDivisionError, AttributeError, MemoryError
        # The plain reason where the library keeps it apart; its full message may hold a memory address.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        if not isinstance(error, errors) or not str(reason).strip():
            reason = f"{type(error).__name__}: {reason}"
        raise DataError(f"{origin}: cannot be decoded as {what}: {' '.join(str(reason).split())}") from error


def check_array(media: np.ndarray, origin: str, dims: int, dtype: type, meaning: str) -> None:
    if media.ndim != dims or media.dtype != dtype or 0 in media.shape:
        raise DataError(f"{origin}: expected {np.dtype(dtype)} {meaning}, got {media.dtype} of shape {media.shape}")


def with_suffix(path: Path, suffix: str) -> Path:
    """`path` with the suffix added unless it is there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)
