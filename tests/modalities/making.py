"""Small real files for the tests of this folder."""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from modalities.base import Record

STEP = 6  # grey levels between the frames of a numbered video


def record(media, rate: float | None = None) -> Record:
    return Record("key", "folder/file", media, rate=rate)


def numbered(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is grey of level STEP * i, so that `numbers` reads i back after compression."""
    levels = (np.arange(frames) * STEP).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(levels: np.ndarray) -> list[int]:
    """The frame numbers of (T, ...) levels in 0..255."""
    return [round(float(frame.mean()) / STEP) for frame in levels]


def video_file(path: Path, pixels: np.ndarray, fps: int = 24, gop: int = 12, **container_options: str) -> Path:
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5", "g": str(gop)})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def picture_bytes(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, kind, **options)
    return file.getvalue()


def tone(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    """float32 (samples,), amplitude one half."""
    return (0.5 * np.sin(2 * math.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_bytes(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()
