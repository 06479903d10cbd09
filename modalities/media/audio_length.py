"""How long an audio file says it is: what libsndfile does not compare with the bytes that are there.

It silently shortens WAV, RF64, AIFF, W64 and AU files that were cut, and Ogg files at the first page that is missing.
Sizes that are wrong while all data are there, and sizes that were never filled in, cost no file.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.errors import DataError
from modalities.media import ogg

W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # what such a file begins with
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")


def check_length(media: bytes | Path, origin: str) -> None:
    """Raise DataError for a file that is shorter than it says; warn where it only says something wrong.

    A warning names the kind and not the file, so that Python shows it once for a process.
    """
    with readable(media) as (file, size):
        start = file.read(4)
        if start == b"OggS":
            whole, last = ogg.is_whole(ogg.last_bytes(file, size))
            if not whole:
                raise DataError(f"{origin}: cut short: the last page of the Ogg stream is missing")
            if not last:
                warnings.warn("Ogg files without an end-of-stream mark are read to their last page", stacklevel=1)
            return
        stated = stated_sizes(file, size)
    if stated is None:
        return
    # The padding byte of an odd last chunk is often left out.
    missing = [end for end in (stated.whole, stated.end) if end is not None and end > size + 1]
    data_there = stated.end is not None and stated.end <= size + 1
    # A size that counts the header too, in a file that is whole by its own account.
    counts_header = (
        stated.end is not None
        and stated.whole is not None
        and (stated.whole <= size + 1 and stated.end - size <= stated.start)
    )
    if missing and not data_there and not counts_header:
        raise DataError(f"{origin}: cut short: {size} of {max(missing)} bytes are there")
    if missing or stated.patches:
        warnings.warn(
            "WAV, AIFF and other files whose sizes are wrong or 0 are read where all their data are there", stacklevel=1
        )


@dataclass(frozen=True)
class Sizes:
    """What the header of a file in chunks says.

    Attributes:
        whole: bytes of the file; None where that was never filled in.
        start, end: where the samples begin and end; no end where their size was never filled in.
        patches: place -> bytes that libsndfile has to find there to read on to the end of the file.
    """

    whole: int | None
    start: int
    end: int | None
    patches: dict[int, bytes]


def stated_sizes(file: BinaryIO, size: int) -> Sizes | None:
    """None for a file that is not in chunks, or has no chunk of samples and no size."""
    file.seek(0)
    start = file.read(36).ljust(36, b"\0")
    if start[:4] in (b"RIFF", b"RIFX", b"FORM"):
        return _riff(file, start, size)
    if start[:4] == b"RF64":
        return _rf64(file, start, size)
    if start[:16] == W64:
        return _w64(file, start, size)
    if start[:4] == b".snd":
        offset, length = struct.unpack_from(">2I", start, 4)
        known = not _is_open(length)
        patches = {8: b"\xff" * 4} if length == 0 and size > offset else {}
        return Sizes(None, offset, offset + length if known else None, patches)
    if start[:4] == b"caff":
        return _caf(file, size)
    return None


def _is_open(length: int) -> bool:
    """Sizes of programs that wrote to a pipe, or were killed: 0, nearly 2**32, and nearly 2**31."""
    return length == 0 or length >= 0xFFFFFF00 or 0x7FFFEF00 <= length <= 0x80000100


def _riff(file: BinaryIO, start: bytes, size: int) -> Sizes | None:
    order = "<" if start[:4] == b"RIFF" else ">"
    (length,) = struct.unpack_from(f"{order}I", start, 4)
    whole = None if _is_open(length) else length + 8
    empty = 8 if start[:4] == b"FORM" else 0  # AIFF counts two numbers before the samples
    place = _find(file, size, f"{order}4sI", (b"data", b"SSND"), 12)
    if place is None:
        return Sizes(whole, size, None, {}) if whole else None
    (length,) = _unpack(file, f"{order}I", place + 4)
    begin = place + 8
    if length == empty and _is_end_of_chunks(file, size, order, begin + length):
        return Sizes(whole, begin, begin + length, {})  # there are none, and other chunks behind
    if _is_open(length) or length == empty:
        patches = {place + 4: struct.pack(f"{order}I", min(size - begin, 0xFFFFFFFF))} if length == empty else {}
        return Sizes(whole, begin, None, patches)
    return Sizes(whole, begin, begin + length, {})


def _is_end_of_chunks(file: BinaryIO, size: int, order: str, place: int) -> bool:
    """Whether nothing but whole chunks lies from here to the end of the file."""
    while place + 8 <= size:
        name, length = _unpack(file, f"{order}4sI", place)
        if not all(32 <= byte < 127 for byte in name):
            return False
        place += 8 + length + length % 2
    return size <= place <= size + 1


def _rf64(file: BinaryIO, start: bytes, size: int) -> Sizes | None:
    whole, data = struct.unpack_from("<2Q", start, 20)
    place = _find(file, size, "<4sI", (b"data",), 12)
    if place is None:
        return Sizes(whole + 8, size, None, {}) if whole else None
    begin = place + 8
    known = [value if 0 < value < 2**63 else None for value in (whole, data)]
    patches = {}
    if known[1] is None and size > begin:
        patches = {20: struct.pack("<2Q", size - 8, size - begin)}
    return Sizes(
        None if known[0] is None else known[0] + 8, begin, None if known[1] is None else begin + known[1], patches
    )


def _w64(file: BinaryIO, start: bytes, size: int) -> Sizes:
    (whole,) = struct.unpack_from("<Q", start, 16)
    known = whole if 40 < whole < 2**63 else None
    place = 40
    while place + 24 <= size:
        name, length = _unpack(file, "<16sQ", place)
        if name == W64_DATA:
            return Sizes(known, place + 24, place + length if 24 < length < 2**63 else None, {})
        if length < 24:
            break
        place += length + -length % 8
    return Sizes(known, size, None, {})


def _caf(file: BinaryIO, size: int) -> Sizes | None:
    place = _find(file, size, ">4sq", (b"data",), 8)
    if place is None:
        return None
    (length,) = _unpack(file, ">q", place + 4)
    return Sizes(None, place + 12, place + 12 + length if length > 0 else None, {})


def _find(file: BinaryIO, size: int, header: str, names: tuple[bytes, ...], place: int) -> int | None:
    """Where a chunk begins."""
    length_of = struct.calcsize(header)
    while place + length_of <= size:
        name, length = _unpack(file, header, place)
        if name in names:
            return place
        if length < 0:
            return None
        place += length_of + length + (length % 2 if length_of == 8 else 0)
    return None


def _unpack(file: BinaryIO, form: str, place: int) -> tuple:
    file.seek(place)
    return struct.unpack(form, file.read(struct.calcsize(form)))


@contextmanager
def readable(media: bytes | Path) -> Iterator[tuple[BinaryIO, int]]:
    """(an open file at its start, its size)."""
    with io.BytesIO(media) if isinstance(media, bytes) else media.open("rb", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        yield file, size


class Patched:
    """A file that reads as if some of its bytes were others, and stays where it is when a header sends it before 0."""

    def __init__(self, file: BinaryIO, patches: dict[int, bytes]):
        self.file, self.patches = file, patches

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self.file.seek(place, whence)
        except (ValueError, OSError):  # libsndfile's own caller would print a traceback and go on
            return self.file.tell()

    def tell(self) -> int:
        return self.file.tell()

    def read(self, count: int = -1) -> bytes:
        start = self.file.tell()
        content = bytearray(self.file.read(count))
        for place, other in self.patches.items():
            for i, byte in enumerate(other, place - start):
                if 0 <= i < len(content):
                    content[i] = byte
        return bytes(content)
