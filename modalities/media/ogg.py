"""Pages of Ogg files: whether the last one is whole and marked as the last, and whether another stream follows."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

FIRST, LAST = 2, 4  # flags of a page in its stream
TAIL = 1 << 16  # a page is no larger
HEADER = (
    27  # bytes of a page, the number of lengths being the last of them; the lengths follow, and what they add up to
)


def is_whole(tail: bytes) -> tuple[bool, bool]:
    """(the last page is whole, it says that it is the last), from the last `TAIL` bytes of the file or more."""
    place = tail.rfind(b"OggS")
    page = tail[place:]
    whole = place >= 0 and len(page) >= HEADER and len(page) >= _length(page)
    return whole, whole and bool(page[5] & LAST)


def is_chained(media: bytes | Path) -> bool:
    """Whether streams begin after the pages with which those at the start begin: songs of a radio, concatenated files.

    Looks through the whole file, at the speed of memory.
    """
    if isinstance(media, bytes):
        return _is_chained(media)
    with media.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _is_chained(content)


def _is_chained(content: bytes | mmap.mmap) -> bool:
    place = 0
    while content[place : place + 4] == b"OggS" and content[place + 5] & FIRST:
        place += _length(content[place : place + HEADER + 255])
    return any(content.find(b"OggS\0" + bytes([flags]), place) >= 0 for flags in (FIRST, FIRST | LAST))


def _length(page: bytes) -> int:
    """Bytes of a page by its header, of which `page` holds all."""
    return HEADER + page[26] + sum(page[HEADER : HEADER + page[26]])


def last_bytes(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - TAIL))
    return file.read()
