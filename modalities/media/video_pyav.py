"""Video through PyAV: opening a file, its rotation, its frames.

Every file is opened and closed within one call, in the process that decodes: what FFmpeg's threads hold open does not
survive a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from core.errors import DataError
from modalities.media.opening import WindowError, decoding, need, open_stream
from modalities.media.video_index import VideoIndex

LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
LARGEST = 2**26  # pixels of a frame; 8192 x 8192


class MirroredError(DataError):
    """The image is mirrored: no quarter turns make it upright."""


@contextmanager
def open_video(media: bytes | Path, origin: str, infer: bool = True) -> Iterator[tuple]:
    """(container, video stream) of PyAV; whatever goes wrong with the file inside becomes a DataError.

    Args:
        infer: let FFmpeg fill in the time stamps that the file does not state.
    """
    av = need("av")
    source = open_stream(media, origin)
    # Also while FFmpeg looks into the file: a header may promise an image of any size.
    options = {"max_pixels": str(LARGEST)} | ({} if infer else {"fflags": "nofillin"})
    # Titles and the like need not be valid text.
    settings = {"metadata_errors": "replace", "options": options}
    with decoding(origin, "a video", av.error.FFmpegError), av.open(source, **settings) as container:
        # Of several, the one that the other backends take too; the image of a song is a video stream as well.
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
        # converter with threads of its parent, even one that was closed before the fork, waits for them forever.
        track.codec_context.thread_count = 1
        # By default FFmpeg paints over damaged places without a word. What the codec cannot notice still passes:
        # h264 has no checksums.
        track.codec_context.options = {"err_detect": "explode", "max_pixels": str(LARGEST)}
        yield container, track


def frame_rate(track) -> float:
    """Frames per second by the header of the container or of the codec, as FFmpeg weighs them up."""
    return float(track.guessed_rate or track.average_rate or 25)


def may_reorder(track) -> bool:
    """Whether frames may be stored in another order than they are shown in."""
    properties = need("av").codec.codec.Properties
    if track.codec_context.codec.canonical_name == "mpeg4":  # its header says so; `read_packets` looks if that is true
        return bool(track.codec_context.has_b_frames)
    return bool(track.codec_context.codec.properties & properties.REORDER.value)


def has_no_clock(container) -> bool:
    """Whether the format has no time stamps at all: raw streams."""
    return bool(container.format.flags & need("av").format.Flags.no_timestamps.value)


def has_alpha(pixels: str) -> bool:
    """Whether a pixel format of FFmpeg holds transparency (with a palette it may)."""
    if not pixels:
        return False
    form = need("av").VideoFormat(pixels)
    return form.has_palette or any(component.is_alpha for component in form.components)


def states_alpha(track) -> bool:
    """Whether a second image, of transparency, lies beside each of VP8 or VP9 (WebM)."""
    tag = {name.lower(): value for name, value in track.metadata.items()}.get("alpha_mode")
    return track.codec_context.codec.canonical_name in LIBVPX and tag == "1"


def orientation(media: bytes | Path, origin: str, skipped: Set[int]) -> tuple[int, bool]:
    """How often the image is turned by 90 degrees counter-clockwise to be upright, and whether a tag speaks of it.

    The tag was how old versions of FFmpeg stated a rotation, which new ones do not read.
    """
    with open_video(media, origin) as (container, track):
        tagged = any(name.lower() == "rotate" for name in track.metadata)
        for frame in _frames(container, track, skipped):
            return _turns(frame, origin), tagged
    raise DataError(f"{origin}: no frame can be decoded")


def _turns(frame, origin: str) -> int:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2].tolist()
    if frame.rotation % 90 or a * d - b * c <= 0:
        raise MirroredError(
            f"{origin}: the container asks to mirror the image or to turn it by {frame.rotation} degrees"
        )
    return frame.rotation // 90 % 4


def returned_stamps(media: bytes | Path, origin: str, skipped: Set[int]) -> tuple[float, list[int | None]]:
    """The frame rate, and the time stamps, stated or inferred, of all frames that the decoder returns."""
    with open_video(media, origin) as (container, track):
        return frame_rate(track), [_stamp(frame) for frame in _frames(container, track, skipped)]


def decoded_stamps(media: bytes | Path, origin: str, skipped: Set[int], stamps: set[int]) -> set[int]:
    """The stamps with which the decoder returns a frame, which lie near the first key frame."""
    found: dict[int, np.ndarray] = {}
    with suppress(DataError):
        _by_stamp(media, origin, skipped, stamps, found=found)
    return set(found)


def decode_pyav(
    media: bytes | Path, origin: str, index: VideoIndex, numbers: list[int], background: Sequence[int] | None = None
) -> list[np.ndarray]:
    """See `media.video.read_frames`."""
    background = background if has_alpha(index.pixels) else None
    try:
        if index.counted:
            found = _by_number(media, origin, index.skipped, set(numbers), background)
            wanted = numbers
        else:
            wanted = [int(pts) for pts in index.pts[numbers]]
            found = {}
            # Some containers seek to a place after the frame, and some codecs cannot begin there: then from the
            # beginning.
            if numbers[0] > 0 and not index.whole:
                with suppress(DataError):
                    found = _by_stamp(media, origin, index.skipped, set(wanted), background, seek=True)
            if not set(wanted) <= found.keys():
                found = _by_stamp(media, origin, index.skipped, set(wanted), background)
    except MirroredError:
        raise
    except DataError as error:
        raise WindowError(str(error)) from error
    if missing := set(wanted) - found.keys():
        raise WindowError(f"{origin}: {len(missing)} of {len(wanted)} frames cannot be decoded")
    return [found[name] for name in wanted]


def _by_stamp(
    media: bytes | Path,
    origin: str,
    skipped: Set[int],
    stamps: set[int],
    background: Sequence[int] | None = None,
    seek: bool = False,
    found: dict[int, np.ndarray] | None = None,
) -> dict[int, np.ndarray]:
    """Stamp -> frame of those that are found; in `found` also where it raises."""
    found = {} if found is None else found
    with open_video(media, origin) as (container, track):
        if seek:
            container.seek(min(stamps), stream=track)
        for frame in _frames(container, track, frozenset() if seek else skipped, background is not None):
            stamp = _stamp(frame)
            if stamp in stamps and not frame.is_corrupt:
                found[stamp] = _upright(frame, origin, background)
            if stamp is not None and stamp >= max(stamps):
                break
    return found


def _by_number(
    media: bytes | Path, origin: str, skipped: Set[int], numbers: set[int], background: Sequence[int] | None
) -> dict[int, np.ndarray]:
    found = {}
    with open_video(media, origin) as (container, track):
        for number, frame in enumerate(_frames(container, track, skipped, background is not None)):
            if number in numbers and not frame.is_corrupt:
                found[number] = _upright(frame, origin, background)
            if number >= max(numbers):
                break
    return found


def _frames(container, track, skipped: Set[int] = frozenset(), alpha: bool = False) -> Iterator:
    """The frames in display order.

    Args:
        skipped: numbers of packets that the decoder is not given.
        alpha: with the transparency of VP8 and VP9, which only libvpx decodes.
    """
    decoder, number = track.codec_context, 0
    if alpha and states_alpha(track):
        av = need("av")
        # Where FFmpeg was built without libvpx, there is no transparency either.
        with suppress(av.codec.codec.UnknownCodecError):
            decoder = av.CodecContext.create(LIBVPX[decoder.codec.canonical_name], "r")
            decoder.thread_count = 1
    for packet in container.demux(track):
        # An empty packet stands for a frame that was left out in recording; a decoder would take it for the end.
        if packet.size:
            if number not in skipped:
                yield from decoder.decode(packet)
            number += 1
    yield from decoder.decode(None)


def _stamp(frame) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


def _upright(frame, origin: str, background: Sequence[int] | None) -> np.ndarray:
    """uint8 (H, W, 3)"""
    if background is not None and has_alpha(frame.format.name):
        levels = frame.to_ndarray(format="rgba", threads=1)
        alpha = levels[..., 3:].astype(np.float32) / 255
        behind = np.asarray(background, dtype=np.float32)
        pixels = (levels[..., :3] * alpha + behind * (1 - alpha)).round().astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24", threads=1)
    turns = _turns(frame, origin)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
