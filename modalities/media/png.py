"""What Pillow does not do for PNG files: pass over long texts, and find the transparent color of every bit depth."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LEFT_OUT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # they may say which way up the image is
LARGEST = 2**20  # bytes of a text that Pillow reads


def without_text(data: bytes) -> bytes:
    """The same image without texts and profiles, for a megabyte of which Pillow refuses a file.

    What is damaged stays so, for the decoder to notice.
    """
    pieces, whole, place = [], 0, len(SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data):
            break
        if name in LEFT_OUT and not _is_kept(name, data[place + 8 : end - 4]):
            pieces.append(data[whole:place])
            whole = end
        place = end
        if name == b"IEND":
            break
    return b"".join([*pieces, data[whole:]]) if pieces else data


def is_tagged_behind_pixels(file: BinaryIO) -> bool:
    """Whether a part that may say which way up the image is comes after its pixels, where no header shows it."""
    place, pixels = len(SIGNATURE), False
    while True:
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return False
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if pixels and (name == b"eXIf" or (name in LEFT_OUT and _is_kept(name, file.read(length)))):
            return True
        pixels |= name == b"IDAT"
        place += 12 + length


def _is_kept(name: bytes, content: bytes) -> bool:
    key = next((key for key in KEPT if content.startswith(key)), None)
    if key is None or len(content) > LARGEST:
        return False
    content = content[len(key) :]
    if name == b"iTXt" and content[:1] == b"\1":  # compressed; flag and method, language and translated key before it
        packed = content[2:].split(b"\0", 2)[-1]
    elif name == b"zTXt":
        packed = content[1:]
    else:
        return True
    try:
        return len(zlib.decompressobj().decompress(packed, LARGEST + 1)) <= LARGEST
    except zlib.error:
        return False


def clear_pixels(data: bytes, image: Image.Image) -> np.ndarray | None:
    """(H, W) bool: pixels of the one color that the file calls transparent; None where it does not.

    Args:
        image: of `data`, loaded. Transparent entries of a palette are left to Pillow.
    """
    key, depth = image.info.get("transparency"), data[24]
    if key is None or image.mode == "P":
        return None
    if image.mode == "1":
        return np.asarray(image) == bool(key)
    levels = np.asarray(image).astype(np.int64)
    if depth < 8:  # Pillow widens the levels to 8 bits, but not the color
        key = key * (255 // (2**depth - 1))
    if image.mode == "RGB" and depth == 16:  # Pillow keeps the upper bytes, and those two that are read as if swapped
        with Image.open(io.BytesIO(data), formats=("PNG",)) as lower:
            # Plain tuples: named ones are new in Pillow 11.
            lower.tile = [(*tile[:3], "RGB;16L") for tile in lower.tile]  # pyright: ignore[reportAttributeAccessIssue]
            levels = levels * 256 + np.asarray(lower)
    same = levels == np.asarray(key)
    return same if same.ndim == 2 else same.all(axis=2)
