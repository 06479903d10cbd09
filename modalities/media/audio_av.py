"""Audio clips that libsndfile does not know, such as M4A, AAC and the audio of a video, through PyAV."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from modalities.media.opening import decoding, need, open_stream

PREROLL = 0.5  # seconds decoded before a place in the middle: codecs look back, MP3 the furthest, by about 0.3

LAST_PACKETS = 64  # of an MP3 file, more than PREROLL
TAGS = (b"ID3", b"TAG", b"APE", b"LYR")  # what tags of MP3 files begin with


@contextmanager
def _opened(media: bytes | Path, origin: str) -> Iterator[tuple[Any, Any]]:
    av = need("av")
    # ValueError: the format of the samples changes within the stream.
    with (
        decoding(origin, "an audio clip", av.error.FFmpegError, ValueError),
        av.open(open_stream(media, origin), metadata_errors="replace") as container,
    ):
        if not container.streams.audio:
            raise DataError(f"{origin}: has no audio track ({container.format.long_name})")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise DataError(f"{origin}: its audio has a codec that is not known here ({container.format.long_name})")
        stream.codec_context.thread_count = 1  # workers are the parallelism, and threads do not survive a fork
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def can_open(media: bytes | Path, origin: str) -> bool:
    """Whether there is an audio clip that can be decoded, at least at its beginning."""
    try:
        with _opened(media, origin) as (container, stream):
            return next(_frames(container, stream, origin), None) is not None
    except (DataError, ConfigError):  # PyAV may be missing, without which most audio clips are read
        return False


def probe_container(media: bytes | Path, origin: str) -> tuple[int, int, int, bool]:
    """(samples, rate, channels, whether the samples were counted and not only stated in samples by the header)."""
    with _opened(media, origin) as (container, stream):
        frames = _frames(container, stream, origin)
        first = next(frames, None)
        if first is None:
            raise DataError(
                f"{origin}: cannot be decoded as an audio clip: nothing in it ({container.format.long_name})"
            )
        rate, channels = first.sample_rate, first.layout.nb_channels
        if _counts_samples(container, stream, rate):
            return stream.duration, rate, channels, False
        if _has_equal_packets(stream, first):
            return _count_packets(container, stream, origin) * first.samples, rate, channels, True
        samples = first.samples
        for frame in frames:
            if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                raise DataError(
                    f"{origin}: changes from {rate} Hz, {channels} channels to {frame.sample_rate} Hz, "
                    f"{frame.layout.nb_channels} channels after {samples / rate:.3f} s"
                )
            samples += frame.samples
        return samples, rate, channels, True


def container_start(media: bytes | Path, origin: str) -> float:
    """Seconds on the clock of the file at which the first sample is heard; what an encoder put before it is not."""
    with _opened(media, origin) as (container, stream):
        first = next(_frames(container, stream, origin), None)
        return 0.0 if first is None or first.pts is None else float(first.pts * first.time_base)


def read_container(media: bytes | Path, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (at most count, channels) from sample `start` on."""
    parts = [np.zeros((0, 1), np.float32)]
    for place, samples in container_blocks(media, origin, start):
        parts.append(samples[max(0, start - place) : start + count - place])
        if place + len(samples) >= start + count:
            break
    return np.concatenate(parts[1:] or parts)


def container_blocks(media: bytes | Path, origin: str, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """(place, float32 (S, channels)) of the whole audio, from sample `start` or somewhat before it on."""
    with _opened(media, origin) as (container, stream):
        convert = need("av").AudioResampler(format="fltp").resample
        frames = _frames(container, stream, origin)
        first = next(frames, None)
        if first is None:
            return
        before = start - round(PREROLL * first.sample_rate)
        place = 0
        if before > 0 and _counts_samples(container, stream, first.sample_rate):
            container.seek(first.pts + before, stream=stream)
            frames, place = _frames(container, stream, origin), None
        elif before > 0 and _has_equal_packets(stream, first):
            skipped = before // first.samples
            container.seek(0, stream=stream)
            frames = _decoded(islice(_audio_packets(container, stream, origin), skipped, None))
            place = skipped * first.samples
        else:  # without seeking, after which Opus has silence in front of it, and an Ogg chain ends early
            frames = chain((first,), frames)
        for frame in frames:
            place = frame.pts - first.pts if place is None else place
            for part in convert(frame):
                samples = part.to_ndarray().T  # (S, channels)
                yield place, samples
                place += len(samples)


def _frames(container: Any, stream: Any, origin: str) -> Iterator[Any]:
    if _is_mp3(stream):
        return _decoded(_audio_packets(container, stream, origin))
    frames = container.decode(stream)
    return _without_gaps(frames, origin) if container.format.name == "flac" else frames


def _without_gaps(frames: Iterable[Any], origin: str) -> Iterator[Any]:
    """The same frames, each of which counts in samples. FFmpeg leaves out damaged ones of FLAC without a word."""
    place = 0
    for frame in frames:
        if frame.pts != place:
            raise DataError(
                f"{origin}: cannot be decoded as an audio clip: damaged behind {place / frame.sample_rate:.3f} s"
            )
        place += frame.samples
        yield frame


def _decoded(packets: Iterable[Any]) -> Iterator[Any]:
    """Frames of MP3 packets. That the last ones cannot be decoded is no damage: files end within a frame."""
    failed = None
    for packet in packets:
        try:
            frames = packet.decode()
        except need("av").error.InvalidDataError as error:
            failed = failed or error
            continue
        if frames and failed:
            raise failed
        yield from frames


def _is_mp3(stream: Any) -> bool:
    return stream.codec_context.name in ("mp3", "mp3float")


def _has_equal_packets(stream: Any, first: Any) -> bool:
    """Whether every packet is as long as the first frame: MP3 of which no silence at the start is left out."""
    return _is_mp3(stream) and first.samples in (384, 576, 1152)


def _audio_packets(container: Any, stream: Any, origin: str) -> Iterator[Any]:
    """Packets of an MP3 file that hold a frame, from where the container stands, without decoding them.

    After the last frame anything may follow, and between frames tags, as in concatenated files.

    Raises DataError for anything else between two frames.
    """
    kind, other, tag = None, False, False
    for packet in container.demux(stream):
        header = memoryview(packet)[:4].tobytes() if packet.size >= 4 else b""
        # Version, layer and rate are those of the first frame.
        found = (header[:1], header[1] & 0xFE, header[2] & 0x0C) if header else None
        kind = kind or found
        if not header or found != kind:
            tag = tag or (not other and header[:3] in TAGS)
            other = other or packet.size > 0
            continue
        if other and not tag:
            raise DataError(f"{origin}: cannot be decoded as an audio clip: damaged before byte {packet.pos}")
        other = tag = False
        yield packet


def _count_packets(container: Any, stream: Any, origin: str) -> int:
    """How many packets of an MP3 file can be decoded; only the last ones are, of which one may be cut."""
    container.seek(0, stream=stream)
    last: deque[Any] = deque(maxlen=LAST_PACKETS)
    count, decoded = 0, 0
    for packet in _audio_packets(container, stream, origin):
        last.append(packet)
        count += 1
    stream.codec_context.flush_buffers()
    for packet in last:
        try:
            decoded = len(packet.decode())
        except need("av").error.InvalidDataError:
            decoded = 0
    return count - (decoded == 0)


def _counts_samples(container: Any, stream: Any, rate: int) -> bool:
    """Times are exact, and any place can be found: MP4 and M4A with the sample as their unit of time."""
    return "mp4" in container.format.name and stream.duration is not None and stream.time_base * rate == 1
