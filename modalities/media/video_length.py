"""Videos that were cut short, found by the length that their container states: AVI, Matroska (WebM) and MP4 (MOV).

FFmpeg reads what is left without a word. MPEG streams state no length.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from core.errors import DataError

# Of an MP4 or QuickTime file, those that lie beside each other.
BOXES = b"ftyp styp sidx moov moof mdat mfra meta free skip wide uuid udta emsg pdin prft".split()


def check_length(media: bytes | Path, origin: str) -> None:
    """Raises DataError when the file has fewer bytes than its container states."""
    with io.BytesIO(media) if isinstance(media, bytes) else media.open("rb") as file:
        there = file.seek(0, io.SEEK_END)
        promised = stated_length(file)
    # The padding byte of an odd last chunk is often left out.
    if promised is not None and there + 1 < promised:
        raise DataError(f"{origin}: cut short: {there} of {promised} bytes are there")


def stated_length(file: BinaryIO) -> int | None:
    """Bytes that a container states for itself, None where it states nothing or is not one of these."""
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        # A program that wrote to a pipe could not fill in the size: 0 or the largest number.
        return size + 8 if 0 < size < 0xFFFFFF00 - 8 else None
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(head)
    return _mp4(file) if head[4:8] in BOXES else None


def _matroska(head: bytes) -> int | None:
    """End of the segment, the one element behind the header (RFC 9559)."""
    place, size = _element_size(head, 4)
    if size is None or head[place + size : place + size + 4] != b"\x18\x53\x80\x67":
        return None
    place, size = _element_size(head, place + size + 4)
    return None if size is None else place + size


def _element_size(head: bytes, place: int) -> tuple[int, int | None]:
    """(place behind it, value) of a number of EBML (RFC 8794, 4): leading zero bits tell its length; ones: unknown."""
    length = 9 - head[place].bit_length() if place < len(head) and head[place] else 0
    if not length or place + length > len(head):
        return place, None
    bits = 7 * length
    value = int.from_bytes(head[place : place + length], "big") & ((1 << bits) - 1)
    return place + length, None if value == (1 << bits) - 1 else value


def _mp4(file: BinaryIO) -> int | None:
    """End of the last of the boxes that make up the file (ISO/IEC 14496-12, 4.2)."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(16)
        if head[4:8] not in BOXES:  # behind the last one, or nothing that matters
            return end
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the box reaches to the end of the file
            return None
        end += size
