"""Messages between a policy and its environment: msgpack with numpy arrays, as openpi writes them.

An array is {b"__ndarray__": True, b"data": bytes, b"dtype": text, b"shape": [...]}. Reading also takes the names as
text, as vla-eval writes them, and its images, which are PNG or JPEG files. This module needs msgpack and numpy, and
Pillow for such images.
"""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np

NUMBERS = "biuf"  # kinds of dtypes that are read: bool, integers, floats. Objects would be code of the other side
LARGEST_SIDE = 8192  # pixels; a small PNG can be an image of gigabytes


class WireError(Exception):
    """The bytes are not a message, or hold what a message must not."""


def pack(message: Any, keys: str = "bytes") -> bytes:
    """A message as msgpack.

    Args:
        keys: of an array's entries: `bytes` as openpi has them, `text` as vla-eval does.
    """
    import msgpack

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in NUMBERS:
                raise TypeError(f"an array of {value.dtype} cannot be sent")
            fields = {
                "__ndarray__": True,
                "data": value.tobytes(),
                "dtype": value.dtype.str,
                "shape": list(value.shape),
            }
            return fields if keys == "text" else {name.encode(): entry for name, entry in fields.items()}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} cannot be sent")

    return cast(bytes, msgpack.packb(message, default=plain, use_bin_type=True))


def unpack(data: bytes) -> Any:
    """The message in some bytes.

    Raises:
        WireError: they are not a message, or an array in it is not as long as its shape says, or holds no numbers.
    """
    import msgpack

    try:
        return msgpack.unpackb(data, object_hook=_array, raw=False, strict_map_key=False)
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise WireError(f"no message of msgpack ({type(error).__name__}: {error})") from error


def _array(found: dict[Any, Any]) -> Any:
    def entry(name: str) -> Any:
        return found.get(name.encode(), found.get(name))

    if entry("__image__"):
        return _image(entry("format"), entry("data"), entry("dtype"), entry("shape"))
    if entry("__ndarray__"):
        return _numbers(entry("data"), entry("dtype"), entry("shape"))
    if entry("__npgeneric__"):
        return entry("data")
    return found


def _numbers(data: bytes, dtype: Any, shape: list[int]) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind not in NUMBERS:
        raise WireError(f"an array of {kind}; only numbers are read")
    if any(side < 0 for side in shape) or kind.itemsize * int(np.prod(shape, dtype=object)) != len(data):
        raise WireError(f"an array of shape {tuple(shape)} and type {kind} with {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape).copy()


def _image(form: str, data: bytes, dtype: Any, shape: list[int]) -> np.ndarray:
    if form == "raw":
        return _numbers(data, dtype, shape)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if max(image.size) > LARGEST_SIDE:
                raise WireError(f"an image of {image.size[0]} x {image.size[1]}")
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise WireError(f"an image that cannot be read ({error})") from error
