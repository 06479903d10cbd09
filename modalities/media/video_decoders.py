"""The libraries that decode video: PyAV by default, decord and torchcodec where they are installed.

Every file is opened and closed within one call, in the process that decodes: what decord or FFmpeg's threads hold open
does not survive a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need as need_optional
from modalities.media.opening import WindowError, decoding, open_stream
from modalities.media.video_index import VideoIndex
from modalities.media.video_pyav import decode_pyav, has_alpha, orientation

WITHOUT = "backend: pyav works"


# The containers, by FFmpeg's names, whose frames decord and torchcodec find by their times, at any place. In others
# (MPEG-TS and -PS, ASF, raw streams) they return the frames of other times, without a word and for some places only.
SEEKABLE = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4 and QuickTime", "matroska,webm": "Matroska and WebM", "avi": "AVI"}
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"


def check_backend(backend: str, media: bytes | Path, origin: str, index: VideoIndex) -> None:
    """Raises DataError for a file that a backend is not for: of all of a file or of none of it, for whatever window.

    PyAV is for all of them. The reasons are those of docs/data.md.
    """
    if backend == "pyav":
        return
    turns, tagged = orientation(media, origin, index.skipped)
    reasons = {
        f"reads {', '.join(SEEKABLE.values())}, not {index.container}": index.container not in SEEKABLE,
        "does not know frames that have no display times": index.counted,
        "does not decode 4:4:4 of an x264 before build 151": index.whole,
        "does not know that the recording begins before its first key frame": bool(index.skipped),
        "ignores transparency": has_alpha(index.pixels),
    }
    if backend == "decord":
        reasons |= {
            "does not find all frames of video with open groups of pictures": not index.closed,
            "does not turn the images of this container": index.container != MP4 and (turns > 0 or tagged),
        }
    for reason, applies in reasons.items():
        if applies:
            raise DataError(f"{origin}: {backend} {reason}; use pyav")


def decode_decord(
    media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int], background: Sequence[int] | None
) -> list[np.ndarray]:
    decord = need_optional("decord", "backend: 'decord'", WITHOUT)
    decord.logging.set_level(decord.logging.QUIET)
    source = open_stream(media, origin)
    with decoding(origin, "a video", _DecordError):
        try:
            # Any frame that decord would replace by its neighbor is an error.
            reader = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1, fault_tol=1)
            _check_count("decord", len(reader), index, origin)
            times = reader.get_frame_timestamp(range(len(reader)))[:, 0]  # float32
            _check_times("decord", times - times[0] + index.start, index, slice(None), origin)
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
            raise _DecordError(_reason(error)) from error
        try:
            return list(reader.get_batch(numbers).asnumpy())
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
            raise WindowError(f"{origin}: cannot be decoded as a video: {_reason(error)}") from error


class _DecordError(Exception):
    """The reason that decord gives, without time, place and path."""


def _reason(error: Exception) -> str:
    # "[time] source file:line: [path] reason", and a stack behind it; some begin with "DECORDLimitReachedError: "
    return re.sub(r"^(\w+: )?\[[\d:]+\] \S+:\d+: (\[\S*\] ?)?", r"\1", str(error).partition("\n")[0])


def decode_torchcodec(
    media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int], background: Sequence[int] | None
) -> list[np.ndarray]:
    decoders = need_optional("torchcodec.decoders", "backend: 'torchcodec'", WITHOUT)
    open_stream(media, origin)  # refuses what is missing or empty
    source = media if isinstance(media, bytes) else str(media)
    with decoding(origin, "a video", RuntimeError, ValueError, IndexError):
        try:
            reader = decoders.VideoDecoder(
                source, stream_index=index.track, dimension_order="NHWC", num_ffmpeg_threads=1, device="cpu"
            )
        except RuntimeError as error:
            if "libtorchcodec" not in str(error):
                raise
            raise ConfigError(
                "backend: 'torchcodec' needs the libraries of FFmpeg (version 4 to 9) on this system, which cannot be "
                f"loaded: install ffmpeg with the system's package manager. {WITHOUT} without it"
            ) from error
        _check_count("torchcodec", len(reader), index, origin)
        try:
            batch = reader.get_frames_at(numbers)
        except (RuntimeError, ValueError, IndexError) as error:
            raise WindowError(f"{origin}: cannot be decoded as a video: {' '.join(str(error).split())}") from error
        _check_times("torchcodec", batch.pts_seconds.numpy(), index, numbers, origin)
        return list(batch.data.numpy())


def _check_count(backend: str, seen: int, index: VideoIndex, origin: str) -> None:
    """A library that counts other frames would give others for the same numbers."""
    if seen != len(index.pts):
        raise DataError(f"{origin}: {backend} sees {seen} frames where the file shows {len(index.pts)}; use pyav")


def _check_times(backend: str, seen: np.ndarray, index: VideoIndex, numbers: list[int] | slice, origin: str) -> None:
    """The times may be of single precision: 1 ms after three hours."""
    expected = index.times[numbers] + index.start
    wrong = np.abs(seen - expected) > 1e-3 + 2 * np.spacing(np.abs(expected).astype(np.float32))
    if wrong.any():
        raise DataError(f"{origin}: {backend} finds other frames at {wrong.sum()} of {len(wrong)} times; use pyav")


DECODERS: dict[str, Callable[..., list[np.ndarray]]] = {
    "pyav": decode_pyav,
    "decord": decode_decord,
    "torchcodec": decode_torchcodec,
}
