"""Which way up an image is, by the orientation tag alone.

Pillow's own way (ImageOps.exif_transpose) writes all EXIF tags anew, and fails for one that is not of its usual type.
"""

from __future__ import annotations

import re
import struct

import numpy as np
from PIL import Image

TAG = 0x0112
# EXIF types that hold whole numbers: byte, short, long, and their signed forms -> struct's letter.
WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF, of an image that was loaded; 1, upright, where nothing valid is stated.

    XMP counts where EXIF has no such tag, as in Pillow, which turns TIFF files itself as it loads them.
    """
    if image.format == "TIFF":
        return 1
    found = exif_orientation(_exif(image))
    if found is None and (match := XMP.search(_xmp(image))):
        found = int(match[1])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def exif_orientation(exif: bytes) -> int | None:
    """The tag's value in a block of EXIF, a small TIFF file; None where it has none or cannot be followed so far."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (first,) = struct.unpack_from(f"{order}I", exif, 4)
    if first + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(f"{order}H", exif, first)
    found = None
    for place in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", exif, place)
        if tag == TAG and kind in WHOLE and values == 1:
            (found,) = struct.unpack_from(order + WHOLE[kind], exif, place + 8)
    return found


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """(H, W, C), or (W, H, C) for turns 5 to 8, as it is to be shown."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):  # bottom up
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):  # right to left
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif(image: Image.Image) -> bytes:
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:  # ImageMagick's text: three lines, then hexadecimal
        digits = "".join(str(image.info["Raw profile type exif"]).split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch(r"(\s*[0-9a-fA-F]{2})*\s*", digits) else b""
    return exif if isinstance(exif, bytes) else b""


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    return xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp)
