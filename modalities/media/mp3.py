"""Whether an MP3 file says how long it is. Without that, libsndfile multiplies its size by the rate of the first frame.

Its own count ends the audio even where there is more, as in two concatenated files.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

NEAR = 4096  # bytes after the tags in which the first frame begins
MORE = 8192  # bytes; shorter remains after the last frame are tags and rubbish


def states_length(file: BinaryIO, size: int) -> bool:
    """Whether the first frame holds a count of frames (Xing, Info) that may be that of the whole file."""
    place = _behind_tags(file)
    file.seek(place)
    start = file.read(NEAR)
    frame = start.find(b"\xff")
    while 0 <= frame <= len(start) - 52:
        if start[frame + 1] & 0xE0 == 0xE0:
            mono, first_version = start[frame + 3] >> 6 == 3, start[frame + 1] & 0x08
            tag = (
                frame
                + {(False, True): 36, (True, True): 21, (False, False): 21, (True, False): 13}[
                    mono, bool(first_version)
                ]
            )
            if start[tag : tag + 4] in (b"Xing", b"Info"):
                flags, frames, count = struct.unpack_from(">3I", start, tag + 4)
                if not flags & 1 or frames == 0:
                    return False
                return not flags & 2 or not _goes_on(file, place + frame + count, size)
        frame = start.find(b"\xff", frame + 1)
    return False


def _behind_tags(file: BinaryIO) -> int:
    """Where the ID3v2 tags end, of which there may be several."""
    place = 0
    while True:
        file.seek(place)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3":
            return place
        length = sum((byte & 0x7F) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))
        place += 10 + length + (10 if header[5] & 0x10 else 0)


def _goes_on(file: BinaryIO, end: int, size: int) -> bool:
    """Whether frames or tags of another file begin where the header says that the last frame ends."""
    if size - end < MORE:
        return False
    file.seek(end)
    start = file.read(3)
    return start == b"ID3" or (start[0] == 0xFF and start[1] & 0xE0 == 0xE0)
