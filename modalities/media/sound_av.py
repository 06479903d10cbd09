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
        if stream.codec_context is None:
            raise DataError(f"{origin}: its sound has a codec that is not known here ({container.format.long_name})")
        stream.codec_context.thread_count = 1  # workers are the parallelism, and threads do not survive a fork
        checks = "crccheck+explode" if stream.codec_context.name == "flac" else "explode"
        stream.codec_context.options = {"err_detect": checks}
        yield container, stream


def can_open(media: bytes | Path, origin: str) -> bool:
    """Whether there is a sound that can be decoded, at least at its beginning."""
    try:
        with _opened(media, origin) as (container, stream):
            return next(_frames(container, stream), None) is not None
    except DataError:
        return False


def probe_container(media: bytes | Path, origin: str) -> tuple[int, int, int, bool]:
    """(samples, rate, channels, whether the samples were counted and not only stated in samples by the header)."""
    with _opened(media, origin) as (container, stream):
        frames = _frames(container, stream)
        first = next(frames, None)
        if first is None:
            raise DataError(f"{origin}: cannot be decoded as a sound: nothing in it ({container.format.long_name})")
        rate, channels = first.sample_rate, first.layout.nb_channels
        if _counts_samples(container, stream, rate):
            return stream.duration, rate, channels, False
        samples = first.samples
        for frame in frames:
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise DataError(
                    f"{origin}: changes from {rate} Hz, {channels} channels to {frame.sample_rate} Hz, "
                    f"{frame.layout.nb_channels} channels after {samples / rate:.3f} s"
                )
            samples += frame.samples
        return samples, rate, channels, True


def read_container(media: bytes | Path, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (at most count, channels) from sample `start` on."""
    parts = [np.zeros((0, 1), np.float32)]
    for place, samples in container_blocks(media, origin, start):
        parts.append(samples[max(0, start - place) : start + count - place])
        if place + len(samples) >= start + count:
            break
    return np.concatenate(parts[1:] or parts)


def container_blocks(media: bytes | Path, origin: str, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(place, float32 (S, channels)) of the whole sound, from sample `start` or somewhat before it on."""
    with _opened(media, origin) as (container, stream):
        convert = need("av").AudioResampler(format="fltp").resample
        first = next(_frames(container, stream), None)
        if first is None:
            return
        before = start - round(PREROLL * first.sample_rate)
        if before > 0 and _counts_samples(container, stream, first.sample_rate):
            container.seek(first.pts + before, stream=stream)
            place = None
        else:
            container.seek(0, stream=stream)
            place = 0
        for frame in _frames(container, stream):
            place = frame.pts - first.pts if place is None else place
            for part in convert(frame):
                samples = part.to_ndarray().T  # (S, channels)
                yield place, samples
                place += len(samples)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames. What cannot be decoded behind the last one of an MP3 file is no damage, but tags and rubbish."""
    if stream.codec_context.name not in ("mp3", "mp3float"):
        yield from container.decode(stream)
        return
    failed = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except need("av").error.InvalidDataError as error:
            failed = failed or error
            continue
        if frames and failed:
            raise failed
        yield from frames


def _counts_samples(container: Any, stream: Any, rate: int) -> bool:
    """Times are exact, and any place can be found: MP4 and M4A with the sample as their unit of time."""
    return "mp4" in container.format.name and stream.duration is not None and stream.time_base * rate == 1
