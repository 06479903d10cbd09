"""Videos that were cut short, found by the lengths that their container states: AVI, Matroska (WebM) and MP4 (MOV).

FFmpeg reads what is left without a word. MPEG streams state no length. A length that is too large is no cut where all
parts of the file are there as a whole: many programs write a wrong number.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from core.errors import DataError

# Of an MP4 or QuickTime file, those that lie beside each other.
BOXES = b"ftyp styp sidx moov moof mdat mfra meta free skip wide uuid udta emsg pdin prft".split()
SEGMENT, CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"  # of Matroska


def check_length(media: bytes | Path, origin: str, all_read: bool = False) -> None:
    """Raises DataError when parts of the file are missing by what its container states.

    Args:
        all_read: every frame that the index of the file lists was read to its end.
    """
    with io.BytesIO(media) if isinstance(media, bytes) else media.open("rb") as file:
        there = file.seek(0, io.SEEK_END)
        promised = None if all_read else stated_length(file)
    # The padding byte of an odd last chunk is often left out.
    if promised is not None and there + 1 < promised:
        raise DataError(f"{origin}: cut short: {there} of {promised} bytes are there")


def stated_length(file: BinaryIO) -> int | None:
    """Bytes that a container states for itself, None where it states nothing, is not one of these, or is wrong."""
    there = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF":
        return _avi(file, there)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska(file, head, there)
    return _mp4(file) if head[4:8] in BOXES else None


def _avi(file: BinaryIO, there: int) -> int | None:
    """End of the last RIFF; files of more than 1 GB have several (OpenDML)."""
    start = 0
    while True:
        size = _number(file, start + 4)
        # A program that wrote to a pipe could not fill in the size: 0 or the largest number.
        if not 0 < size < 0xFFFFFF00 - 8:
            return None
        end = start + 8 + size
        if there + 1 < end:
            return None if _whole_chunks(file, start + 12, there) else end
        if _name(file, end + size % 2) != b"RIFF":
            return end
        start = end + size % 2


def _whole_chunks(file: BinaryIO, place: int, there: int) -> bool:
    """Whether the chunks of a RIFF end where the file does, and the one with the frames is among them."""
    movie = False
    while place + 8 <= there:
        movie = movie or _name(file, place + 8) == b"movi"
        size = _number(file, place + 4)
        place += 8 + size + size % 2
    return movie and place <= there + 1


def _name(file: BinaryIO, place: int) -> bytes:
    file.seek(place)
    return file.read(4)


def _number(file: BinaryIO, place: int) -> int:
    return int.from_bytes(_name(file, place), "little")


def _matroska(file: BinaryIO, head: bytes, there: int) -> int | None:
    """End of the segment, the one element after the header (RFC 9559)."""
    place, size = _element_size(head, 4)
    if size is None or head[place + size : place + size + 4] != SEGMENT:
        return None
    start, size = _element_size(head, place + size + 4)
    if size is None:
        return None
    if there < start + size and _whole_elements(file, start, there):
        return None
    return start + size


def _whole_elements(file: BinaryIO, place: int, there: int) -> bool:
    """Whether the elements of a segment end where the file does, and clusters of frames are among them."""
    frames = False
    while place < there:
        file.seek(place)
        head = file.read(12)
        behind, size = _element_size(head, 9 - head[0].bit_length() if head[0] else 8)
        if size is None:  # damaged, or a stream that was written live
            return False
        frames = frames or head[:4] == CLUSTER
        place += behind + size
    return frames and place == there


def _element_size(head: bytes, place: int) -> tuple[int, int | None]:
    """(place after it, value) of a number of EBML (RFC 8794, 4): leading zero bits tell its length; ones: unknown."""
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
        if head[4:8] not in BOXES:  # after the last one, or nothing that matters
            return end
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the box reaches to the end of the file
            return None
        end += size
