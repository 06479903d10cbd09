"""The libraries that decode video: PyAV by default, decord and torchcodec where they are installed.

Every file is opened and closed within one call, in the process that decodes: what decord or FFmpeg's threads hold open
does not survive a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need as need_optional
from modalities.media.opening import Media, decoding, open_stream
from modalities.media.video_index import VideoIndex
from modalities.media.video_pyav import WindowError, decode_pyav, quarter_turns

WITHOUT = "backend: pyav works"


def check_backend(backend, media, origin, index) -> None:
    return


def decode_decord(media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int]) -> list[np.ndarray]:
    decord = need_optional("decord", "backend: 'decord'", WITHOUT)
    decord.logging.set_level(decord.logging.QUIET)
    if not index.closed:  # from such key frames it decodes grey and torn frames without a word
        raise DataError(f"{origin}: decord does not find all frames of video with open groups of pictures; use pyav")
    with decoding(origin, "a video", _DecordError):
        try:
            # Any frame that decord would replace by its neighbour is an error.
            reader = decord.VideoReader(open_stream(media, origin), ctx=decord.cpu(0), num_threads=1, fault_tol=1)
            _check_count("decord", len(reader), index, origin)
            times = reader.get_frame_timestamp(numbers)[:, 0] - reader.get_frame_timestamp(0)[0]
            _check_times("decord", times + index.start, index, numbers, origin)
            return list(reader.get_batch(numbers).asnumpy())
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
            # "[time] source file:line: [path] reason", and a stack behind it
            reason = re.sub(r"^\[[\d:]+\] \S+:\d+: (\[\S*\] ?)?", "", str(error).partition("\n")[0])
            raise _DecordError(reason) from error


class _DecordError(Exception):
    """The reason that decord gives, without time, place and path."""


def decode_torchcodec(media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int]) -> list[np.ndarray]:
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
        batch = reader.get_frames_at(numbers)
        _check_times("torchcodec", batch.pts_seconds.numpy(), index, numbers, origin)
        return list(batch.data.numpy())


def _check_count(backend: str, seen: int, index: VideoIndex, origin: str) -> None:
    """A library that counts other frames would give others for the same numbers."""
    if seen != len(index.pts):
        raise DataError(f"{origin}: {backend} sees {seen} frames where the file shows {len(index.pts)}; use pyav")


def _check_times(backend: str, seen: np.ndarray, index: VideoIndex, numbers: list[int], origin: str) -> None:
    wrong = np.abs(seen - index.times[numbers] - index.start) > 1e-3
    if wrong.any():
        raise DataError(f"{origin}: {backend} finds other frames at {wrong.sum()} of {len(wrong)} times; use pyav")


DECODERS: dict[str, Callable[..., list[np.ndarray]]] = {
    "pyav": decode_pyav,
    "decord": decode_decord,
    "torchcodec": decode_torchcodec,
}
