"""Video files to arrays: which frames there are, read without decoding, and some of them decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.errors import DataError
from modalities.media.opening import Media, check_array
from modalities.media.video_decoders import DECODERS, open_video, quarter_turns
from modalities.media.video_length import check_length

# A frame counts as shown from this many seconds before its time: containers round times, to as much as 1 ms.
ROUNDING = 1e-3
LARGEST = 2**26  # pixels of a frame; 8192 x 8192
ASPECTS = (1 / 4, 4)  # of a pixel, width over height; beyond lie damaged headers


@dataclass(frozen=True)
class VideoIndex:
    """Which frames a video has, known without decoding them.

    Attributes:
        pts: (F,) int64 time stamps in display order, in the container's unit.
        times: (F,) seconds since the first frame.
        seconds: end of the last frame.
        aspect: width of a pixel over its height, in the upright picture.
        start: time of the first frame on the container's clock, in seconds.
        track: number of the video's stream in its container.
        closed: decoding may begin at any key frame: none is followed in the file by a frame that is shown before it.
    """

    pts: np.ndarray
    times: np.ndarray
    seconds: float
    aspect: float = 1.0
    start: float = 0.0
    track: int = 0
    closed: bool = True

    def count(self, fps: float) -> int:
        """Frames that the video fills at a rate."""
        return math.ceil((self.seconds - ROUNDING) * fps)

    def shown(self, start: float, fps: float, frames: int) -> np.ndarray:
        """(n,) the frame on screen at start, start + 1/fps, ...; n < frames where the video ends before."""
        wanted = start + np.arange(frames) / fps
        wanted = wanted[wanted < self.seconds - ROUNDING]
        return np.searchsorted(self.times, wanted + ROUNDING, side="right") - 1


def index_video(media: Media, origin: str, rate: float | None = None) -> VideoIndex:
    """The frames of a video file, or of a uint8 (T, H, W, 3) array at `rate` frames per second.

    Number, duration and rate of frames that a header states are not believed, only the time stamps of the packets.
    Frames that an edit list hides do not count. The last frame is on screen for the time its packet states, but no
    longer than the longest before it.

    Raises:
        DataError: no video, cut short, no time stamps, frames or pixels of an impossible shape.
        ConfigError: PyAV is missing.
    """
    if isinstance(media, np.ndarray):
        check_array(media, origin, 4, np.uint8, "(T, H, W, 3)")
        if not rate or rate <= 0:
            raise DataError(f"{origin}: frames without a rate (frames per second), got {rate}")
        order = np.arange(len(media))
        return VideoIndex(order, order / rate, len(media) / rate)
    with open_video(media, origin) as (container, track):
        unit, number = float(track.time_base), track.index
        # The last packet is empty.
        packets = [packet for packet in container.demux(track) if packet.size]
        fallback = 1 / float(track.average_rate or 25)
        size, aspect = (track.width, track.height), float(track.sample_aspect_ratio or 1)
    check_length(media, origin)
    shown = [packet for packet in packets if not packet.is_discard]
    durations = {_stamp(packet): packet.duration or 0 for packet in shown}
    if None in durations:
        raise DataError(f"{origin}: the video has frames without a time stamp")
    if not durations:
        raise DataError(f"{origin}: the video has no frames")
    if math.prod(size) > LARGEST:
        raise DataError(f"{origin}: frames of {size[0]} x {size[1]} pixels; at most {LARGEST} pixels are decoded")
    if not ASPECTS[0] <= aspect <= ASPECTS[1]:
        raise DataError(f"{origin}: pixels {aspect:g} times as wide as high; allowed are 0.25 to 4")
    if aspect != 1 and quarter_turns(media, origin) % 2:
        aspect = 1 / aspect
    pts = np.array(sorted(durations), dtype=np.int64)
    times = (pts - pts[0]) * unit
    last = durations[int(pts[-1])] * unit or fallback
    if len(pts) > 1:
        last = min(last, float(np.diff(times).max()))
    return VideoIndex(pts, times, float(times[-1]) + last, aspect, float(pts[0] * unit), number, _closed(packets))


def _stamp(packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _closed(packets: list) -> bool:
    key = None
    for packet in packets:
        if packet.is_keyframe:
            key = _stamp(packet)
        elif key is not None and _stamp(packet) < key:
            return False
    return True


def read_frames(
    media: Media, origin: str, index: VideoIndex, wanted: np.ndarray, backend: str = "pyav"
) -> list[np.ndarray]:
    """uint8 (H, W, 3) for each number of a frame in `index`, upright by the container's rotation.

    Decodes from the key frame before the first wanted one on. Interlaced video is left as it is stored, transparency
    is ignored, and pixels are not made square (see `VideoIndex.aspect`).

    All backends give the same frames, or refuse the file. Of 8-bit video with even sides the levels are equal too;
    of others (10 bits, odd sides) they differ at the edges of colours, since each brings its own version of FFmpeg.

    Not every flipped byte is noticed. Of 40 files of 24 frames, each with one, pyav refused 34 in h264 and 30 in mpeg4,
    but none in vp9, whose frames carry nothing to check; decord, which lets FFmpeg paint over what is broken, none.

    Args:
        backend: a key of `video_decoders.DECODERS`.

    Raises:
        DataError: a frame cannot be decoded, or the size of the picture changes within the clip.
        ConfigError: the backend is not installed.
    """
    if isinstance(media, np.ndarray):
        return list(media[wanted])
    numbers = sorted({int(number) for number in wanted})
    frames = dict(zip(numbers, DECODERS[backend](media, origin, index, numbers), strict=True))
    if len({frame.shape for frame in frames.values()}) > 1:
        raise DataError(f"{origin}: the size of the picture changes within the clip")
    return [frames[int(number)] for number in wanted]
