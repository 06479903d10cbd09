"""The libraries that decode video: PyAV by default, decord and torchcodec where they are installed.

Every file is opened and closed within one call, in the process that decodes: what decord or FFmpeg's threads hold open
does not survive a fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need as need_optional
from modalities.media.opening import decoding, need, open_stream

if TYPE_CHECKING:
    from modalities.media.video import VideoIndex

WITHOUT = "backend: pyav works"


@contextmanager
def open_video(media: bytes | Path, origin: str) -> Iterator[tuple]:
    """(container, video stream) of PyAV; its errors become DataError."""
    av = need("av")
    source = open_stream(media, origin)
    # Titles and the like need not be valid text.
    with decoding(origin, "a video", av.error.FFmpegError), av.open(source, metadata_errors="replace") as container:
        # Of several, the one that the other backends take too; the picture of a song is a video stream as well.
        try:
            track = container.streams.best("video")
        except IndexError:  # damaged: FFmpeg found a stream after its list was made
            track = None
        if track is None or track.disposition & av.stream.Disposition.attached_pic:
            raise DataError(f"{origin}: has no video stream")
        if "_pipe" in container.format.name or container.format.name in ("image2", "tty"):
            raise DataError(f"{origin}: is not a video but {container.format.name.removesuffix('_pipe')}")
        if track.codec_context is None:
            raise DataError(f"{origin}: its video has a codec that is not known here")
        # One thread, here and where frames are converted: workers are the parallelism, and whoever frees a decoder or
        # converter with threads of its parent, even one that was closed before the fork, waits for them for ever.
        track.codec_context.thread_count = 1
        # By default FFmpeg paints over damaged places without a word. What the codec cannot notice still passes:
        # h264 has no checksums.
        track.codec_context.options = {"err_detect": "explode"}
        yield container, track


def quarter_turns(media: bytes | Path, origin: str) -> int:
    """How often the container asks to turn the stored picture by 90 degrees counter-clockwise."""
    with open_video(media, origin) as (container, track):
        return _turns(next(container.decode(track)), origin)


def _turns(frame, origin: str) -> int:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].tolist()
    if frame.rotation % 90 or a * d - b * c <= 0:
        raise DataError(f"{origin}: the container asks to mirror the picture or to turn it by {frame.rotation} degrees")
    return frame.rotation // 90 % 4


def decode_pyav(media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int]) -> list[np.ndarray]:
    stamps = [int(pts) for pts in index.pts[numbers]]
    found: dict[int, np.ndarray] = {}
    # Some containers seek to a place behind the frame, and some codecs cannot begin there: then from the beginning.
    if numbers[0] > 0:
        with suppress(DataError):
            found = _decode(media, origin, set(stamps), seek=True)
    if not set(stamps) <= found.keys():
        found = _decode(media, origin, set(stamps), seek=False)
    if missing := set(stamps) - found.keys():
        raise DataError(f"{origin}: {len(missing)} of {len(stamps)} frames cannot be decoded")
    return [found[pts] for pts in stamps]


def _decode(media: bytes | Path, origin: str, stamps: set[int], seek: bool) -> dict[int, np.ndarray]:
    found = {}
    with open_video(media, origin) as (container, track):
        if seek:
            container.seek(min(stamps), stream=track)
        for frame in container.decode(track):
            pts = frame.dts if frame.pts is None else frame.pts
            if pts in stamps and not frame.is_corrupt:
                pixels = frame.to_ndarray(format="rgb24", threads=1)
                turns = _turns(frame, origin)
                found[pts] = np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
            if pts is not None and pts >= max(stamps):
                break
    return found


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
