"""The pixels of an image as 8-bit red, green and blue at full range, whatever their bit depth and color space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from core.errors import DataError

TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
# Tags of TIFF, and their values for white-is-zero and for whole numbers without a sign.
BITS_PER_SAMPLE, PHOTOMETRIC, COLOR_MAP, SAMPLE_FORMAT = 258, 262, 320, 339
WHITE_IS_ZERO, UNSIGNED = 0, 1


def to_rgb(image: Image.Image, origin: str, background: Sequence[int], clear: np.ndarray | None = None) -> np.ndarray:
    """uint8 (H, W, 3) of an image that was loaded, transparency composited on `background`.

    Args:
        clear: (H, W) bool, pixels that are transparent, where that is known; what Pillow says is not asked then.

    Raises:
        DataError: values without a defined black and white: floats, signed and 32-bit ones.
    """
    tags = image.tag_v2 if image.format == "TIFF" and isinstance(image, TiffImageFile) else {}
    if set(tags.get(SAMPLE_FORMAT, ())) - {UNSIGNED} or image.mode == "F" or (image.mode == "I" and tags):
        raise DataError(
            f"{origin}: an image of signed, 32-bit or float values has no defined range; whole numbers of 1 to 16 "
            "bits without a sign have one"
        )
    if image.mode == "P" and max(tags.get(COLOR_MAP, (256,))) < 256:  # 8-bit values where 16 bits belong
        image.putpalette(bytes(np.reshape(tags[COLOR_MAP], (3, -1)).T.astype(np.uint8)))
    if image.mode.startswith("I"):
        rgb = np.repeat(_wide_gray(image, tags, origin)[..., None], 3, axis=2)
    elif clear is None and _is_transparent(image):
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*background, 255))
        rgb = np.array(Image.alpha_composite(canvas, image).convert("RGB"))
    else:
        rgb = np.array(image.convert("RGB"))
    if clear is not None:
        rgb[clear] = background
    return rgb


def _is_transparent(image: Image.Image) -> bool:
    clear_colors = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return image.mode in TRANSPARENT or "transparency" in image.info or clear_colors


def _wide_gray(image: Image.Image, tags: Mapping[int, Any], origin: str) -> np.ndarray:
    """uint8 (H, W) of gray of more than 8 bits."""
    levels = np.asarray(image).astype(np.float64)
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))[:1]
    top = 2**bits - 1
    if levels.min() < 0 or levels.max() > top:
        raise DataError(f"{origin}: levels from {levels.min():g} to {levels.max():g}, of {bits} bits")
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns 8 bits and fewer around, but not 16
        levels = top - levels
    return (levels / (top / 255)).round().astype(np.uint8)
