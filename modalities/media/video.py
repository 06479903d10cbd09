"""Video files to arrays: which frames there are, read without decoding, and some of them decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import DataError
from modalities.media.opening import Media, WindowError, check_array
from modalities.media.video_decoders import DECODERS, check_backend
from modalities.media.video_index import VideoIndex
from modalities.media.video_length import check_length
from modalities.media.video_packets import JUMP, before_key, closed, has_clock, leading, read_packets, x264_build
from modalities.media.video_pyav import (
    LARGEST,
    decoded_stamps,
    frame_rate,
    has_no_clock,
    may_reorder,
    open_video,
    orientation,
    returned_stamps,
    states_alpha,
)

ASPECTS = (1 / 4, 4)  # of a pixel, width over height; beyond lie damaged headers
BROADCAST = ("mpegts", "mpeg")  # containers whose clock may be reset anywhere
# Share of frames that come later than the one before, below which the time stamps of a file mean nothing.
MOST = 0.9
# FFmpeg knows by the version of x264 how to decode 4:4:4 of older ones; only the beginning of a file states it.
FIRST_CORRECT_444 = 151


def index_video(media: Media, origin: str, rate: float | None = None) -> VideoIndex:
    """The frames of a video file, or of a uint8 (T, H, W, 3) array at `rate` frames per second.

    Number and duration of frames that a header states are not believed, only the time stamps of the packets, and of
    these only what the file itself states. Where it states no display times, or sets its clock anew, the whole file is
    decoded: frames are numbered in the order in which the decoder returns them. Frames that an edit list hides, and
    those before the first that can be decoded, do not count. The last frame is on screen for the time its packet
    states, but no longer than the longest before it.

    Raises:
        DataError: no video, cut short, frames or pixels of an impossible shape, damage where frames must be counted.
        ConfigError: PyAV is missing.
    """
    if isinstance(media, np.ndarray):
        check_array(media, origin, 4, np.uint8, "(T, H, W, 3)")
        if not rate or rate <= 0:
            raise DataError(f"{origin}: frames without a rate (frames per second), got {rate}")
        order = np.arange(len(media))
        return VideoIndex(order, order / rate, len(media) / rate)
    with open_video(media, origin, infer=False) as (container, track):
        unit, number, listed, container_name = float(track.time_base), track.index, track.frames, container.format.name
        size, aspect = (track.width, track.height), float(track.sample_aspect_ratio or 1)
        codec = track.codec_context.codec.canonical_name
        pixels = "yuva420p" if states_alpha(track) else track.codec_context.pix_fmt or ""
        extra = track.codec_context.extradata or b""
        rate, timeless = frame_rate(track), has_no_clock(container)
        if math.prod(size) > LARGEST:
            raise DataError(f"{origin}: frames of {size[0]} x {size[1]} pixels; at most {LARGEST} pixels are decoded")
        first, packets = read_packets(container.demux(track), codec, may_reorder(track))
    check_length(media, origin, bool(packets) and len(packets) == listed and not any(packet.cut for packet in packets))
    if not ASPECTS[0] <= aspect <= ASPECTS[1]:
        raise DataError(f"{origin}: pixels {aspect:g} times as wide as high; allowed are 0.25 to 4")
    skipped = before_key(packets)
    if early := leading(packets, len(skipped)):
        decoded = decoded_stamps(media, origin, skipped, set(early))
        skipped |= {number for stamp, number in early.items() if stamp not in decoded}
    if aspect != 1 and orientation(media, origin, skipped)[0] % 2:
        aspect = 1 / aspect
    about = {
        "aspect": aspect,
        "track": number,
        "closed": closed(packets),
        "container": container_name,
        "codec": codec,
        "pixels": pixels,
        "whole": codec == "h264" and _is_444(pixels) and x264_build(extra + first) < FIRST_CORRECT_444,
        "skipped": frozenset(skipped),
    }
    shown = [packet for number, packet in enumerate(packets) if not packet.hidden and number not in skipped]
    if not shown:
        raise DataError(f"{origin}: the video has no frames")
    if timeless or not has_clock(shown, unit, container_name in BROADCAST):
        return _count(media, origin, 0 if timeless else unit, about)
    durations = {packet.stamp: packet.duration for packet in shown if packet.stamp is not None}  # all have one here
    pts = np.array(sorted(durations), dtype=np.int64)
    times = _seconds(pts, unit)
    last = durations[int(pts[-1])] * unit or 1 / rate
    if len(pts) > 1:
        last = min(last, float(np.diff(times).max()))
    return VideoIndex(pts, times, float(times[-1]) + last, start=float(pts[0] * unit), **about)


def video_extent(media: Media, origin: str) -> tuple[int, int]:
    """(H, W) of the frames of a video, upright and with square pixels; its header and first frame are read. Raises
    DataError."""
    if isinstance(media, np.ndarray):
        height, width = media.shape[1:3]
        return height, width
    with open_video(media, origin) as (_, track):
        height, width = track.height, round(track.width * float(track.sample_aspect_ratio or 1))
    turned = orientation(media, origin, frozenset())[0] % 2
    return (width, height) if turned else (height, width)


def _seconds(stamps: np.ndarray, unit: float) -> np.ndarray:
    """Since the first; in float, since damaged stamps may lie further apart than an integer holds."""
    return (stamps.astype(np.float64) - float(stamps[0])) * unit


def _is_444(pixels: str) -> bool:
    return "444" in pixels or pixels.startswith("gbr")


def _count(media: bytes | Path, origin: str, unit: float, about: dict) -> VideoIndex:
    """Where packets have no display time: the frames in the order in which the decoder returns them.

    They come at the times that FFmpeg infers for them where that is possible, else at the file's rate.

    Args:
        unit: of the time stamps in seconds; 0 where they mean nothing.
    """
    rate, stamps = returned_stamps(media, origin, about["skipped"])
    if not stamps:
        raise DataError(f"{origin}: the video has no frames")
    order = np.arange(len(stamps))
    times, start = order / rate, 0.0
    if unit and stamps[0] is not None:
        start = stamps[0] * unit
    if unit and len(stamps) > 1 and None not in stamps:
        inferred = _seconds(np.array(stamps, dtype=np.int64), unit)
        gaps = np.diff(inferred)
        if (gaps >= 0).all() and (gaps > 0).mean() > MOST and gaps.max() <= JUMP:
            times = inferred
    return VideoIndex(order, times, float(times[-1]) + 1 / rate, start=start, counted=True, **about)


def read_frames(
    media: Media,
    origin: str,
    index: VideoIndex,
    wanted: np.ndarray,
    backend: str = "pyav",
    background: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """uint8 (H, W, 3) for each number of a frame in `index`, upright by the container's rotation.

    Decodes from the key frame before the first wanted one on, or from the first frame where the index says so.
    Interlaced video is left as it is stored, and pixels are not made square (see `VideoIndex.aspect`). Any bit depth,
    range and matrix of colors comes out as the full range of 8 bits of the file's own primaries; HDR (PQ, HLG) is not
    tone-mapped.

    All backends give the same frames, or refuse the file as a whole, whatever the window. Of 8-bit video with even
    sides the levels are equal too; of others (10 bits, odd sides) they differ at the edges of colors, since each
    brings its own version of FFmpeg.

    Not every flipped byte is noticed. Of 40 files of 24 frames, each with one, pyav refused 34 in h264 and 30 in mpeg4,
    but none in vp9, whose frames carry nothing to check; decord, which lets FFmpeg paint over what is broken, none.

    Args:
        backend: a key of `video_decoders.DECODERS`.
        background: of transparent places; None takes the colors that lie there.

    Raises:
        WindowError: a frame cannot be decoded, or the size of the image changes within the video; another window of
            the file may be whole.
        DataError: any other reason, which holds for every window.
        ConfigError: the backend is not installed.
    """
    if isinstance(media, np.ndarray):
        return list(media[wanted])
    check_backend(backend, media, origin, index)
    numbers = sorted({int(number) for number in wanted})
    decoded = DECODERS[backend](media, origin, index, numbers, background)
    frames = dict(zip(numbers, decoded, strict=True))
    if len({frame.shape for frame in frames.values()}) > 1:
        raise WindowError(f"{origin}: the size of the image changes within the window")
    return [frames[int(number)] for number in wanted]
