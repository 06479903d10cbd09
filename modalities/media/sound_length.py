"""How long a sound file says it is: what libsndfile does not compare with the bytes that are there.

It silently shortens WAV, RF64, AIFF, W64 and AU files that were cut, and Ogg files at the first page that is missing.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

from core.errors import DataError

STREAMED = 0xFFFFFF00  # sizes from here on, and 0, are those of a program that wrote to a pipe and did not know them
OGG_TAIL = 1 << 16  # a page is no larger
OGG_LAST = 4  # a page's flag: the last one of its stream
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # what such a file begins with


def check_length(media: bytes | Path, origin: str) -> None:
    """Raise DataError for a file that is shorter than it says."""
    with io.BytesIO(media) if isinstance(media, bytes) else media.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        start = file.read(32).ljust(32, b"\0")
        if start[:4] == b"OggS":
            _check_ogg(file, size, origin)
        else:
            promised = _promised(file, start, size)
            # The padding byte of an odd last chunk is often left out.
            if size + 1 < promised:
                raise DataError(f"{origin}: cut short: {size} of {promised} bytes are there")


def _promised(file: BinaryIO, start: bytes, size: int) -> int:
    """Bytes of the file by its header; 0 where it does not say."""
    if start[:4] in (b"RIFF", b"RIFX", b"FORM"):
        number = "<I" if start[:4] == b"RIFF" else ">I"
        (length,) = struct.unpack_from(number, start, 4)
        whole = length + 8 if 0 < length < STREAMED else 0
        return max(whole, _sound_end(file, number, size))
    if start[:4] == b"RF64":
        return struct.unpack_from("<Q", start, 20)[0] + 8
    if start[:16] == W64:
        return struct.unpack_from("<Q", start, 16)[0]
    if start[:4] == b".snd":
        offset, length = struct.unpack_from(">2I", start, 4)
        return offset + length if length < STREAMED else 0
    return 0


def _sound_end(file: BinaryIO, number: str, size: int) -> int:
    """Where the chunk that holds the samples of a RIFF or AIFF file ends; 0 for an unknown length, or without one."""
    place = 12
    while place + 8 <= size:
        file.seek(place)
        name, length = struct.unpack(f"{number[0]}4sI", file.read(8))
        if name in (b"data", b"SSND"):
            return place + 8 + length if length < STREAMED else 0
        place += 8 + length + length % 2
    return 0


def _check_ogg(file: BinaryIO, size: int, origin: str) -> None:
    file.seek(max(0, size - OGG_TAIL))
    tail = file.read()
    place = tail.rfind(b"OggS")
    page = tail[place:]
    # 27 bytes, the number of lengths being the last of them, the lengths, and as many bytes as they add up to.
    whole = place >= 0 and len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not whole or not page[5] & OGG_LAST:
        raise DataError(f"{origin}: cut short: the last page of the Ogg stream is missing")
