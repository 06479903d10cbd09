"""Pictures, grids of pictures and clips to files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from modalities.media.opening import need, with_suffix

SMALLEST_SIDE = 256  # pixels; smaller clips and grids are enlarged when written


def to_bytes(media: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1], clipped -> uint8 (..., H, W, 3)."""
    levels = ((media.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().numpy()


def _enlarge(pixels: np.ndarray, smallest: int) -> np.ndarray:
    """uint8 (..., H, W, 3), each pixel a square, by the least whole factor that makes the short side `smallest`."""
    factor = max(1, math.ceil(smallest / min(pixels.shape[-3:-1])))
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_image(image: Tensor, path: Path) -> Path:
    """(3, H, W) in [-1, 1] -> PNG at its own size."""
    path = with_suffix(Path(path), ".png")
    Image.fromarray(to_bytes(image)).save(path)
    return path


def write_grid(images: Tensor, path: Path, columns: int | None = None, labels: Sequence[str] = ()) -> Path:
    """(B, 3, H, W) in [-1, 1] -> one PNG, `columns` beside each other (default: square), small ones enlarged.

    Args:
        labels: a short text under each picture, or none.
    """
    tiles = _enlarge(to_bytes(images), SMALLEST_SIDE // 2)
    count, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    gap, text = 4, 14 if labels else 0
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + text) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, tile in enumerate(tiles):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + gap + text)
        sheet.paste(Image.fromarray(tile), (x, y))
        if i < len(labels):
            label = labels[i]
            while label and font.getlength(label) > width:
                label = label[:-1]
            draw.text((x, y + height), label, fill="black", font=font)
    path = with_suffix(Path(path), ".png")
    sheet.save(path)
    return path


def write_video(video: Tensor, path: Path, fps: float) -> Path:
    """(T, 3, H, W) in [-1, 1] -> MP4, h264 where FFmpeg has it, else mpeg4; small clips are enlarged for players."""
    av, path = need("av"), with_suffix(Path(path), ".mp4")
    frames = _enlarge(to_bytes(video), SMALLEST_SIDE)
    # 4:2:0 chroma needs even sides: repeat the last row or column.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "12"} if name == "libx264" else {"qmin": "1", "qmax": "3"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
