"""Sounds that libsndfile does not know, such as M4A, AAC and the sound of a video, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError
from modalities.media.opening import decoding, need, open_stream

PREROLL = 0.5  # seconds decoded before a place in the middle: codecs look back, MP3 the furthest, by about 0.3


@contextmanager
def _opened(media: bytes | Path, origin: str) -> Iterator[tuple[Any, Any]]:
    av = need("av")
    # ValueError: the format of the samples changes within the stream.
    with (
        decoding(origin, "a sound", av.error.FFmpegError, ValueError),
        av.open(open_stream(media, origin), metadata_errors="replace") as container,
    ):
        if not container.streams.audio:
            raise DataError(f"{origin}: has no sound ({container.format.long_name})")
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1  # workers are the parallelism, and threads do not survive a fork
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def probe_container(media: bytes | Path, origin: str) -> tuple[int, int, int]:
    """(samples, rate, channels); samples as the header says where it counts in them, else counted."""
    with _opened(media, origin) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise DataError(f"{origin}: cannot be decoded as a sound: nothing in it ({container.format.long_name})")
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if _counts_samples(container, stream, rate):
            return stream.duration, rate, channels
        return frame.samples + sum(other.samples for other in container.decode(stream)), rate, channels


def read_container(media: bytes | Path, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (at most count, channels) from sample `start` on."""
    with _opened(media, origin) as (container, stream):
        convert = need("av").AudioResampler(format="fltp").resample
        first = next(container.decode(stream), None)
        if first is None:
            return np.zeros((0, 1), np.float32)
        before = start - round(PREROLL * first.sample_rate)
        if before > 0 and _counts_samples(container, stream, first.sample_rate):
            container.seek(first.pts + before, stream=stream)
            place = None
        else:
            container.seek(0, stream=stream)
            place = 0
        parts = [np.zeros((0, first.layout.nb_channels), np.float32)]
        for frame in container.decode(stream):
            place = frame.pts - first.pts if place is None else place
            for part in convert(frame):
                samples = part.to_ndarray().T  # (S, channels)
                parts.append(samples[max(0, start - place) : start + count - place])
                place += len(samples)
            if place >= start + count:
                break
    return np.concatenate(parts)


def _counts_samples(container: Any, stream: Any, rate: int) -> bool:
    """Times are exact, and any place can be found: MP4 and M4A with the sample as their unit of time."""
    return "mp4" in container.format.name and stream.duration is not None and stream.time_base * rate == 1
