"""Files that a person gives, kept in the output folder under the digest of their content."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.errors import ConfigError
from tools.outputs import output_folder

FOLDER = "given"


def keep(path: str | Path, out: Path, what: str, megabytes: float) -> Path:
    """OUT/given/DIGEST.SUFFIX with the content of an uploaded file.

    Args:
        what: name of the field, for messages.

    Raises:
        ConfigError: it is larger than allowed, or gone, as uploads are when the page has been open for long.
    """
    source = Path(path)
    if not source.is_file():
        raise ConfigError(f"{what}: the uploaded file is gone; choose it again")
    size = source.stat().st_size
    if size > megabytes * 1e6:
        raise ConfigError(f"{what}: {size / 1e6:.1f} MB, at most {megabytes:g} MB are taken")
    suffix = source.suffix.lower() if re.fullmatch(r"\.[a-z0-9]{1,8}", source.suffix.lower()) else ""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _publish(out, f"{digest[:16]}{suffix}", lambda kept: shutil.copyfile(source, kept))


def keep_painted(value: dict[str, Any] | None, out: Path, what: str) -> tuple[Path | None, Path | None]:
    """The image of an editor and the mask that was painted over it: light where anything was painted.

    Args:
        value: of gradio's ImageEditor, with PIL images: `background` and `layers`.

    Returns:
        (image, mask) in OUT/given; None for an image that was not given, and for a mask where nothing was painted.

    Raises:
        ConfigError: something was painted, and there is no image under it.
    """
    background = (value or {}).get("background")
    layers = [layer for layer in (value or {}).get("layers", []) if layer is not None]
    painted = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in layers]  # (H, W) each
    strokes = [layer for layer in painted if layer.any()]
    if background is None or not np.asarray(background.convert("RGBA"))[..., 3].any():  # an empty canvas
        if strokes:
            raise ConfigError(f"{what}: something is painted, and there is no image under it; upload one first")
        return None, None
    image = _keep_image(background.convert("RGB"), out)
    if not strokes:
        return image, None
    mask = np.logical_or.reduce([_fitted(layer, background.size) for layer in strokes])
    return image, _keep_image(Image.fromarray((mask * 255).astype(np.uint8)), out)


def _fitted(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of the size (width, height) of the image."""
    return np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.NEAREST))


def _keep_image(image: Image.Image, out: Path) -> Path:
    data = io.BytesIO()
    image.save(data, "PNG")
    name = f"{hashlib.sha256(data.getvalue()).hexdigest()[:16]}.png"
    return _publish(out, name, lambda path: path.write_bytes(data.getvalue()))


def _publish(out: Path, name: str, write: Any) -> Path:
    folder = output_folder(out / FOLDER, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / name
    if not kept.exists():
        aside = folder / f".{name}.writing"
        write(aside)
        aside.replace(kept)
    return kept
