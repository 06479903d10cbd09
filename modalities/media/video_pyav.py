"""Video through PyAV: opening a file, its rotation, its frames.

Every file is opened and closed within one call, in the process that decodes: what FFmpeg's threads hold open does not
survive a fork.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from core.errors import DataError
from modalities.media.opening import decoding, need, open_stream
from modalities.media.video_index import VideoIndex

LARGEST = 2**26  # pixels of a frame; 8192 x 8192


class WindowError(DataError):
    """These frames of a video cannot be decoded; others of the same file may be."""


class MirroredError(DataError):
    """The picture is not one that is turned by quarters."""


@contextmanager
def open_video(media: bytes | Path, origin: str, infer: bool = True) -> Iterator[tuple]:
    """(container, video stream) of PyAV; whatever goes wrong with the file inside becomes a DataError.

    Args:
        infer: let FFmpeg fill in the time stamps that the file does not state.
    """
    av = need("av")
    source = open_stream(media, origin)
    # Also while FFmpeg looks into the file: a header may promise a picture of any size.
    options = {"max_pixels": str(LARGEST)} | ({} if infer else {"fflags": "nofillin"})
    # Titles and the like need not be valid text.
    settings = {"metadata_errors": "replace", "options": options}
    with decoding(origin, "a video", av.error.FFmpegError), av.open(source, **settings) as container:
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
        track.codec_context.options = {"err_detect": "explode", "max_pixels": str(LARGEST)}
        yield container, track


def may_reorder(track) -> bool:
    """Whether frames may be stored in another order than they are shown in."""
    properties = need("av").codec.codec.Properties
    if track.codec_context.codec.canonical_name == "mpeg4":  # its header says so; `read_packets` looks if that is true
        return bool(track.codec_context.has_b_frames)
    return bool(track.codec_context.codec.properties & properties.REORDER.value)


def has_no_clock(container) -> bool:
    """Whether the format has no time stamps at all: raw streams."""
    return bool(container.format.flags & need("av").format.Flags.no_timestamps.value)


def quarter_turns(media: bytes | Path, origin: str, lead: int) -> int:
    """How often the container asks to turn the stored picture by 90 degrees counter-clockwise."""
    with open_video(media, origin) as (container, track):
        for frame in _frames(container, track, lead):
            return _turns(frame, origin)
    raise DataError(f"{origin}: no frame can be decoded")


def _turns(frame, origin: str) -> int:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].tolist()
    if frame.rotation % 90 or a * d - b * c <= 0:
        raise MirroredError(f"{origin}: the container asks to mirror the picture or to turn it by {frame.rotation} degrees")
    return frame.rotation // 90 % 4


def returned_stamps(media: bytes | Path, origin: str, lead: int) -> list[int | None]:
    """The time stamps, stated or inferred, of all frames that the decoder returns from the first key frame on."""
    with open_video(media, origin) as (container, track):
        return [_stamp(frame) for frame in _frames(container, track, lead)]


def decoded_stamps(media: bytes | Path, origin: str, lead: int, stamps: set[int]) -> set[int]:
    """Those of the stamps with which the decoder returns a frame, which lie near the first key frame."""
    return set(_by_stamp(media, origin, lead, stamps, seek=False))


def decode_pyav(media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int]) -> list[np.ndarray]:
    try:
        if index.counted:
            found = _by_number(media, origin, index.lead, set(numbers))
            wanted = numbers
        else:
            wanted = [int(pts) for pts in index.pts[numbers]]
            found = {}
            # Some containers seek to a place behind the frame, and some codecs cannot begin there: then from the
            # beginning.
            if numbers[0] > 0 and not index.whole:
                with suppress(DataError):
                    found = _by_stamp(media, origin, index.lead, set(wanted), seek=True)
            if not set(wanted) <= found.keys():
                found = _by_stamp(media, origin, index.lead, set(wanted), seek=False)
    except MirroredError:
        raise
    except DataError as error:
        raise WindowError(str(error)) from error
    if missing := set(wanted) - found.keys():
        raise WindowError(f"{origin}: {len(missing)} of {len(wanted)} frames cannot be decoded")
    return [found[name] for name in wanted]


def _by_stamp(media: bytes | Path, origin: str, lead: int, stamps: set[int], seek: bool) -> dict[int, np.ndarray]:
    found = {}
    with open_video(media, origin) as (container, track):
        if seek:
            container.seek(min(stamps), stream=track)
        for frame in _frames(container, track, 0 if seek else lead):
            stamp = _stamp(frame)
            if stamp in stamps and not frame.is_corrupt:
                found[stamp] = _upright(frame, origin)
            if stamp is not None and stamp >= max(stamps):
                break
    return found


def _by_number(media: bytes | Path, origin: str, lead: int, numbers: set[int]) -> dict[int, np.ndarray]:
    found = {}
    with open_video(media, origin) as (container, track):
        for number, frame in enumerate(_frames(container, track, lead)):
            if number in numbers and not frame.is_corrupt:
                found[number] = _upright(frame, origin)
            if number >= max(numbers):
                break
    return found


def _frames(container, track, lead: int) -> Iterator:
    """The frames in display order, without the first `lead` packets, whose references a recording has missed."""
    number = 0
    for packet in container.demux(track):
        # An empty packet stands for a frame that was left out in recording; a decoder would take it for the end.
        if packet.size:
            number += 1
            if number > lead:
                yield from packet.decode()
    yield from track.codec_context.decode(None)


def _stamp(frame) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


def _upright(frame, origin: str) -> np.ndarray:
    """uint8 (H, W, 3)"""
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    turns = _turns(frame, origin)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
