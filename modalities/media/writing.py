"""Images, grids of images, and videos with or without audio to files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from modalities.media.audio import resample
from modalities.media.opening import need, with_suffix

SMALLEST_SIDE = 256  # pixels; smaller videos and grids are enlarged when written


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
        labels: a short text under each image, or none.
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


def write_video(video: Tensor, path: Path, fps: float, audio: Tensor | None = None, rate: int = 0) -> Path:
    """(T, 3, H, W) in [-1, 1] -> MP4, h264 where FFmpeg has it, else mpeg4; small videos are enlarged for players.

    Args:
        audio: (channels, samples) in [-1, 1] at `rate` Hz, 1 or 2 channels; written as AAC at 48 kHz, which every
            player takes.
    """
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
        track = None if audio is None else _audio_track(container, len(audio))
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if track is not None and audio is not None:
            for frame in _audio_frames(av, audio, rate, track.codec_context.frame_size):
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


AUDIO_RATE = 48_000  # Hz, of audio in an MP4


def _audio_track(container, channels: int):
    track = container.add_stream("aac", rate=AUDIO_RATE, layout="mono" if channels == 1 else "stereo")
    track.bit_rate = 192_000
    track.codec_context.open()  # tells how many samples a frame takes
    return track


def _audio_frames(av, audio: Tensor, rate: int, size: int) -> Iterator:
    """(channels, samples) at `rate` -> planar float frames at AUDIO_RATE of `size` samples, the last one filled up."""
    samples = resample(audio.detach().cpu().float().clamp(-1, 1).numpy().T, rate, AUDIO_RATE).T  # (channels, S)
    samples = np.pad(samples, [(0, 0), (0, -samples.shape[1] % size)])
    for first in range(0, samples.shape[1], size):
        block = np.ascontiguousarray(samples[:, first : first + size], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono" if len(block) == 1 else "stereo")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, first, Fraction(1, AUDIO_RATE)
        yield frame
