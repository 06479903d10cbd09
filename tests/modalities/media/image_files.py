"""PNG and TIFF files, EXIF blocks: written byte by byte, in kinds that Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

ASCII, SHORT, LONG, RATIONAL = 2, 3, 4, 5
ORIENTATION = 0x0112


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, depth: int, color: int, rows: Sequence[bytes], *chunks: bytes) -> bytes:
    """One with these rows; `chunks` come before the pixels.

    Args:
        color: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha.
    """
    header = png_chunk(b"IHDR", struct.pack(">2I5B", width, len(rows), depth, color, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, pixels, png_chunk(b"IEND", b"")])


def tags(entries: Sequence[tuple[int, int, Sequence[int] | bytes]], order: str = "<") -> bytes:
    """A TIFF header and one directory of (tag, type, values or raw bytes), for a file or a block of EXIF."""
    sizes = {1: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, 12: 8}
    letters = {1: "B", SHORT: "H", LONG: "I"}
    behind = 8 + 2 + 12 * len(entries) + 4
    directory, values = b"", b""
    for tag, kind, value in sorted(entries, key=lambda entry: entry[0]):
        raw = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{letters[kind]}", *value)
        directory += struct.pack(f"{order}HHI", tag, kind, len(raw) // sizes[kind])
        if len(raw) <= 4:
            directory += raw.ljust(4, b"\0")
        else:
            directory += struct.pack(f"{order}I", behind + len(values))
            values += raw
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return start + directory + bytes(4) + values


def tiff(
    width: int,
    height: int,
    pixels: bytes,
    bits: Sequence[int] = (8,),
    photometric: int = 1,
    extra: Sequence[int] = (),
    sample_format: int = 1,
    order: str = "<",
    more: Sequence[tuple[int, int, Sequence[int] | bytes]] = (),
) -> bytes:
    """An uncompressed one of one strip."""
    entries = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, list(bits)),
        (259, SHORT, [1]),
        (262, SHORT, [photometric]),
        (277, SHORT, [len(bits)]),
        (278, LONG, [height]),
        (279, LONG, [len(pixels)]),
        (339, SHORT, [sample_format] * len(bits)),
        *([(338, SHORT, list(extra))] if extra else []),
        *more,
    ]
    place = len(tags([*entries, (273, LONG, [0])], order))
    return tags([*entries, (273, LONG, [place])], order) + pixels
