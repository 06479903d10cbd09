"""Images: any file to a fixed size, pixels or latents as tokens, and which tokens an inpainting mask leaves known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from autoencoders.config import AutoencoderConfig
from autoencoders.kinds import KINDS, build, media_problems, misfit
from autoencoders.transforms import PixelsConfig
from core.errors import ConfigError, DataError, ShapeError, nearest
from core.kinds import kinds
from modalities.base import AutoencoderAdapter, Known, Media, Record
from modalities.media.images import image_extent, read_image
from modalities.media.opening import decoding
from modalities.media.writing import write_image

CROPS = ("center", "random", "pad")


@dataclass
class ImageConfig:
    """
    Attributes:
        size: pixels, [H, W] or [side] for a square; multiples of a token's side.
        sizes: several of them, `size` among these: a record has the one that fits it best, and a step has samples of
            one size, as many as have no more tokens than `batch` samples of `size` (modalities/data/buckets.py).
        autoencoder: of the images; pixels needs no weights.
        patch: side of the square of latent cells, of pixels without an autoencoder, that becomes one token. Left out,
            as the kind usually has it: pixels 4, sd_vae 2, others 1.
        crop: center or random keep the image's shape and cut off what sticks out; pad keeps all of it and fills up
            with `background`.
        background: red, green, blue in 0..255, behind transparent pixels and around padded images.
        min_size: an image whose short side has fewer pixels is refused; 0 enlarges every small one.
        flip: mirror every other image in training, left to right, at random; captions stay as they are.
    """

    size: list[int] = field(default_factory=lambda: [16, 16])
    sizes: list[list[int]] = field(default_factory=list)
    autoencoder: AutoencoderConfig = field(default_factory=PixelsConfig, metadata=kinds(KINDS["image"]))
    patch: int | None = None
    crop: str = "center"
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    min_size: int = 0
    flip: bool = False

    def problems(self) -> list[str]:
        return frame_problems(self, "image", 1) or sizes_problems(self, "image", 1)


def frame_problems(config, modality: str, frames: int) -> list[str]:
    """Problems of the fields that images and videos share (size, patch, crop, background, min_size), and of those that
    their autoencoder reads or limits.

    Args:
        frames: 1, or those of the video, whose number the autoencoder limits.
    """
    found, patch = media_problems(config, modality), config.patch
    if patch is not None and patch < 1:
        found.append(f"patch: {patch} must be at least 1")
    if len(config.size) not in (1, 2) or min(config.size, default=0) < 1:
        found.append(f"size: {list(config.size)} must be [H, W] or [side], in pixels above 0")
    elif line := misfit(config, (frames, *height_and_width(config.size))):
        found.append(line if line.startswith("frames:") else f"size: {line}")
    if config.crop not in CROPS:
        found.append(f"crop: {config.crop!r} is not one of {', '.join(CROPS)}.{nearest(config.crop, CROPS)}")
    if len(config.background) != 3 or not all(0 <= level <= 255 for level in config.background):
        found.append(f"background: {list(config.background)} must be three numbers in 0..255")
    if config.min_size < 0:
        found.append(f"min_size: {config.min_size} must be 0 or more pixels")
    return found


def sizes_problems(config, modality: str, frames: int) -> list[str]:
    """Problems of `sizes` of images or videos, whose other settings are right."""
    found, seen = [], set()
    for size in config.sizes:
        found += [
            f"sizes: {list(size)}: {line.removeprefix('size: ')}"
            for line in frame_problems(replace(config, size=size, sizes=[]), modality, frames)
        ]
        if not found and height_and_width(size) in seen:
            found.append(f"sizes: {list(size)} is there twice")
        if not found:
            seen.add(height_and_width(size))
    if not found and config.sizes and height_and_width(config.size) not in seen:
        shown = ", ".join(map(str, map(list, config.sizes)))
        found.append(f"size: {list(config.size)} is not one of the sizes {shown}; it is the one that `batch` is of")
    return found


def height_and_width(size: Sequence[int]) -> tuple[int, int]:
    """[H, W] or [side] -> (H, W)."""
    return size[0], size[-1]


def fit_frames(
    frames: Sequence[np.ndarray] | np.ndarray,
    config,
    origin: str,
    generator: torch.Generator,
    background: Sequence[int] | None = None,
    aspect: float = 1.0,
) -> Tensor:
    """uint8 (H0, W0, 3) each -> float32 (T, 3, H, W) in [-1, 1], resized (bicubic, antialiased), cropped or padded.

    All frames are cut at the same place. The same generator state gives the same cut for the same H0 and W0. Resizing
    works on 8-bit levels as PIL's does, with the same result to 2 levels, and is about 8 times as fast as in float32.
    Frames that have the wanted size already are only rescaled to [-1, 1], exactly.

    Args:
        config: ImageConfig or VideoConfig.
        background: replaces the config's.
        aspect: width of a pixel over its height; the result has square ones.

    Raises:
        DataError: the short side is below `min_size`.
    """
    height, width = height_and_width(config.size)
    rows, columns = frames[0].shape[:2]
    if min(rows, columns) < config.min_size:
        raise DataError(f"{origin}: {rows} x {columns} pixels, the short side must have at least {config.min_size}")
    scales = height / rows, width / (columns * aspect)
    scale = min(scales) if config.crop == "pad" else max(scales)
    resized = max(1, round(rows * scale)), max(1, round(columns * aspect * scale))
    # Rounding must not leave a row or column uncovered, nor one too many where nothing may be cut.
    limit = min if config.crop == "pad" else max
    resized = limit(resized[0], height), limit(resized[1], width)
    spare = abs(resized[0] - height), abs(resized[1] - width)
    top, left = spare[0] // 2, spare[1] // 2
    if config.crop == "random":
        top, left = (int(torch.randint(count + 1, (), generator=generator)) for count in spare)

    pad = config.crop == "pad"
    levels = torch.empty(len(frames), 3, height, width, dtype=torch.uint8)
    if pad:
        fill = torch.tensor(config.background if background is None else background, dtype=torch.uint8)
        levels[:] = fill[:, None, None]
    for frame, canvas in zip(frames, levels, strict=True):
        x = torch.tensor(frame).permute(2, 0, 1)  # (3, H0, W0)
        if resized != (rows, columns):
            x = functional.interpolate(x[None], resized, mode="bicubic", antialias=True)[0]
        if pad:
            canvas[:, top : top + resized[0], left : left + resized[1]] = x
        else:
            canvas[:] = x[:, top : top + height, left : left + width]
    return levels.float().div_(127.5).sub_(1)


def gray_ramp(size: tuple[int, int], least: int) -> np.ndarray:
    """An image, uint8 (H, W, 3), of `size` (H, W) but with `least` pixels on every side."""
    height, width = (max(side, least) for side in size)
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[:, None], (height, width, 3)).copy()


def flip_at_random(media: Tensor, generator: torch.Generator) -> Tensor:
    """(..., H, W), mirrored left to right in every other case."""
    return media.flip(-1) if torch.rand((), generator=generator) < 0.5 else media


class ImageAdapter(AutoencoderAdapter):
    """Images (3, H, W) in [-1, 1] and their tokens. Raises ConfigError when the config has problems."""

    modality = "image"
    known_files = MappingProxyType(
        {
            "image": "the image to paint into, with --mask; without it an image that is given as a whole",
            "mask": "light pixels are painted anew, dark ones are kept",
        }
    )

    def __init__(self, config: ImageConfig):
        if found := config.problems():
            raise ConfigError(found)
        self.config = config
        size = 1, *height_and_width(config.size)
        super().__init__(build(config, size), size)

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        with decoding(record.origin, "an image"):
            pixels = read_image(record.readable(), record.origin, self.config.background)
            return fit_frames(pixels[None], self.config, record.origin, generator)[0]

    def extent(self, record: Record) -> tuple[int, int]:
        """(H, W) of a record's image before it is resized."""
        return image_extent(record.readable(), record.origin)

    def stand_in(self) -> Media:
        return Media(gray_ramp(self.size[1:], self.config.min_size))

    def augment(self, media: Tensor, generator: torch.Generator) -> Tensor:
        return flip_at_random(media, generator) if self.config.flip else media

    def seconds(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        if "image" not in files:
            raise ConfigError("--mask says what is kept of an image: --image and --mask go together")
        media = self.load(files["image"], draw())
        if "mask" not in files:
            return Known.whole(self, media)
        mask = self.load_mask(files["mask"], draw())
        return Known(media, self.known_from_image_mask(mask), mask)

    def load_mask(self, record: Record, generator: torch.Generator) -> Tensor:
        """(H, W) bool, True where the image is known: dark in the mask. Light parts are generated.

        Use the generator's state that `load` had for the image, so that both are cut at the same place. What a mask
        does not cover (transparent or padded) is generated.
        """
        pixels = read_image(record.readable(), record.origin)
        return fit_frames(pixels[None], self.config, record.origin, generator, (255, 255, 255))[0].mean(dim=0) < 0

    def known_from_image_mask(self, known: Tensor) -> Tensor:
        """(H, W) bool known pixels -> (N,) bool: a token is given when all its pixels are known."""
        if tuple(known.shape) != self.size[1:] or known.dtype != torch.bool:
            raise ShapeError(f"mask: expected bool {self.size[1:]}, got {known.dtype} {tuple(known.shape)}")
        _, rows, columns = self.grid()
        return rearrange(known, "(h p) (w q) -> (h w) (p q)", h=rows, w=columns).all(dim=1)

    def write(self, media: Tensor, path: Path) -> Path:
        """PNG at the image's own size."""
        return write_image(media, path)
