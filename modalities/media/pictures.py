"""Picture files to arrays, through PIL."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import DataError
from modalities.media.opening import Media, check_array, decoding, open_stream

# No format that runs an interpreter (PostScript) or that is not a picture.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(media: Media, origin: str, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """uint8 (H, W, 3): upright by its EXIF tag, alpha composited on `background`, 16-bit grey reduced to 8 bits.

    Of an animated file the first picture is taken; a colour profile is not applied. A file that was cut short is
    refused. Flipped bytes are noticed in PNG, which has checksums, and in about half of the cases elsewhere.

    Raises:
        DataError: not a picture, a damaged one, or one of more than 179 million pixels (PIL's limit).
    """
    if isinstance(media, np.ndarray):
        check_array(media, origin, 3, np.uint8, "(H, W, 3)")
        if media.shape[2] != 3:
            raise DataError(f"{origin}: expected uint8 (H, W, 3), got shape {media.shape}")
        return media
    source = open_stream(media, origin)
    with decoding(origin, "a picture", *PICTURE_ERRORS):
        try:
            picture = Image.open(source, formats=PICTURE_FORMATS)
        except UnidentifiedImageError as error:  # its message holds a memory address
            raise ValueError(f"not one of {', '.join(PICTURE_FORMATS)}") from error
        with picture:
            return np.array(_to_rgb(ImageOps.exif_transpose(picture), origin, background))


def _to_rgb(picture: Image.Image, origin: str, background: Sequence[int]) -> Image.Image:
    if picture.mode == "F":
        raise DataError(f"{origin}: a picture of float values has no defined range")
    if picture.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it at 255
        grey = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(canvas, picture).convert("RGB")
    return picture.convert("RGB")
