"""Headers of MP4 files, changed in place."""

from __future__ import annotations

import struct

# 90: the camera was turned; the image is shown turned by as many degrees counter-clockwise.
TURNS = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}


def turned(data: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """With the display matrix (ISO/IEC 14496-12, 8.3.2): a point (x, y) is shown at (a x + c y, b x + d y)."""
    changed = bytearray(data)
    place = changed.index(b"tkhd") + 4 + 40
    fixed = [round(value * 2**16) for value in (a, b, 0, c, d, 0, 0, 0)]
    struct.pack_into(">9i", changed, place, *fixed, 2**30)
    return bytes(changed)


def trimmed(data: bytes, units: int) -> bytes:
    """With an edit list that leaves out the first `units` of the video's clock."""
    changed = bytearray(data)
    place = changed.index(b"elst") + 12  # duration and start of the first entry
    duration, start = struct.unpack_from(">Ii", changed, place)
    struct.pack_into(">Ii", changed, place, duration, start + units)
    return bytes(changed)
