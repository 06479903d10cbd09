"""Small real files for the tests of this folder."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from modalities.base import Record

STEP = 6  # gray levels between the frames of a numbered video


def record(media, rate: float | None = None) -> Record:
    return Record("key", "folder/file", media, rate=rate)


def numbered(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is gray of level STEP * i, so that `numbers` reads i back after compression."""
    levels = (np.arange(frames) * STEP).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(levels: np.ndarray) -> list[int]:
    """The frame numbers of (T, ...) levels in 0..255."""
    return [round(float(frame.mean()) / STEP) for frame in levels]


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 9, columns * 8, (rows + columns) * 4], axis=-1).astype(np.uint8)


def video_file(
    path: Path,
    pixels: np.ndarray,
    fps: int = 24,
    gop: int = 12,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    milliseconds: Sequence[int] = (),
    last: int = 0,
    options: dict[str, str] | None = None,
    **container_options: str,
) -> Path:
    """A video of uint8 (T, H, W, 3).

    Args:
        milliseconds: the time of every frame; fps where there are none.
        last: duration of the last packet in frames; 0 leaves it to the container.
        options: of the codec.
    """
    quality = {"libx264": {"crf": "5", "bf": "3"}, "mpeg4": {"qmin": "1", "qmax": "3"}}.get(codec, {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": str(gop), **quality, **(options or {})})
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], pixel_format
        stream.codec_context.thread_count = 1  # its threads must not be waited for in the worker of a loader
        if milliseconds:
            stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for i, levels in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(levels, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last:
            max(packets, key=lambda packet: packet.pts).duration = last
        for packet in packets:
            container.mux(packet)
    return path


def image_bytes(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def tone(seconds: float, rate: int, pitch: float = 440.0) -> np.ndarray:
    """float32 (samples,), amplitude one half."""
    return (0.5 * np.sin(2 * math.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def audio_bytes(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def audio_file(path: Path, samples: np.ndarray, rate: int, codec: str, **container_options: str) -> Path:
    """float32 (S, channels) through a codec that libsndfile does not have; the suffix names the container."""
    layout = ("mono", "stereo")[samples.shape[1] - 1]
    with av.open(str(path), "w", options=container_options) as container:
        options = {"aac_pns": "0"} if codec == "aac" else {}  # no noise that its decoders would make up by chance
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    return path
