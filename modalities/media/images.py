"""Image files to arrays, through Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import DataError
from modalities.media.colors import to_rgb
from modalities.media.opening import Media, check_array, decoding, open_stream
from modalities.media.orientation import orientation, upright
from modalities.media.png import SIGNATURE, clear_pixels, is_tagged_behind_pixels, without_text

# No format that runs an interpreter (PostScript), is not an image, or cannot be recognized by its first bytes.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")
PLUGINS = {"pillow_avif": "AVIF", "pillow_heif": "HEIF", "pillow_jxl": "JXL"}  # package -> format it adds
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(media: Media, origin: str, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """uint8 (H, W, 3): upright by its orientation tag, alpha composited on `background`, at full range in 8 bits.

    Of an animated file the first image is taken; a color profile is not applied. A file that was cut short is
    refused. Flipped bytes are noticed in PNG, which has checksums, and in about half of the cases elsewhere.

    Raises:
        DataError: not an image, a damaged one, one of more than 179 million pixels (Pillow's limit), or one whose
            values have no defined range.
    """
    if isinstance(media, np.ndarray):
        check_array(media, origin, 3, np.uint8, "(H, W, 3)")
        if media.shape[2] != 3:
            raise DataError(f"{origin}: expected uint8 (H, W, 3), got shape {media.shape}")
        return media
    open_stream(media, origin)  # refuses what is missing or empty
    with decoding(origin, "an image", *IMAGE_ERRORS):
        data = media.read_bytes() if isinstance(media, Path) else media
        png = data.startswith(SIGNATURE)
        if png:
            data = without_text(data)
        with _opened(data) as image:
            image.load()
            clear = clear_pixels(data, image) if png else None
            return upright(to_rgb(image, origin, background, clear), orientation(image))


def image_extent(media: Media, origin: str) -> tuple[int, int]:
    """(H, W) of an image as `read_image` returns it, from its header where that says it. Raises DataError."""
    if isinstance(media, np.ndarray):
        height, width = media.shape[:2]
        return height, width
    open_stream(media, origin)
    with decoding(origin, "an image", *IMAGE_ERRORS):
        source = media if isinstance(media, Path) else io.BytesIO(media)
        with Image.open(source, formats=_formats()) as image:
            if image.format == "TIFF":
                image.load()  # turns it
            if image.format == "PNG" and _is_tagged_late(media):
                height, width = read_image(media, origin).shape[:2]
                return height, width
            turned = orientation(image) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)


def _is_tagged_late(media: bytes | Path) -> bool:
    with media.open("rb") if isinstance(media, Path) else io.BytesIO(media) as file:
        return is_tagged_behind_pixels(file)


def _formats() -> list[str]:
    return [name for name in IMAGE_FORMATS + _plugins() if name in Image.OPEN]


def _opened(data: bytes) -> Image.Image:
    formats = _formats()
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # its message holds a memory address
        for name in formats:
            make, accepts = Image.OPEN.get(name, (None, None))
            if make and accepts and accepts(data[:16]) is True:
                try:
                    make(io.BytesIO(data), "")
                except IMAGE_ERRORS as reason:
                    raise ValueError(f"a {name} file that is damaged or of an unknown kind: {reason}") from error
        raise ValueError(f"not one of {', '.join(formats)}") from error


@cache
def _plugins() -> tuple[str, ...]:
    """The formats that packages beside Pillow add, made known to it, once for a process."""
    Image.init()
    found = []
    for package, name in PLUGINS.items():
        if name not in Image.OPEN and find_spec(package):
            module = import_module(package)
            if register := getattr(module, "register_heif_opener", None):
                register()
        if name in Image.OPEN and name not in IMAGE_FORMATS:
            found.append(name)
    return tuple(found)
