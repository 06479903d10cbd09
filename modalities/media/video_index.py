"""Which frames a video has and when each is on screen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A frame counts as shown from this many seconds before its time: containers round times, to as much as 1 ms.
ROUNDING = 1e-3


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a video, numbered in display order.

    Attributes:
        pts: (F,) int64 time stamps in display order, in the container's unit; of `counted` video 0, 1, ...
        times: (F,) seconds since the first frame.
        seconds: end of the last frame.
        aspect: width of a pixel over its height, in the upright image.
        start: time of the first frame on the container's clock, in seconds.
        track: number of the video's stream in its container.
        closed: decoding may begin at any key frame: none is followed in the file by a frame that is shown before it.
        container, codec, pixels: FFmpeg's names of the file's format, of its codec and of how pixels are stored;
            empty for an array.
        counted: the file has no display times to know frames by: number n is the n-th frame that a decoder returns
            which begins at the first key frame.
        whole: can be decoded from the first frame on only.
        skipped: numbers of the packets at the beginning that cannot be decoded, since what they refer to lies before
            the recording.
    """

    pts: np.ndarray
    times: np.ndarray
    seconds: float
    aspect: float = 1.0
    start: float = 0.0
    track: int = 0
    closed: bool = True
    container: str = ""
    codec: str = ""
    pixels: str = ""
    counted: bool = False
    whole: bool = False
    skipped: frozenset[int] = frozenset()

    def count(self, fps: float) -> int:
        """Frames that the video fills at a rate."""
        return math.ceil((self.seconds - ROUNDING) * fps)

    def shown(self, start: float, fps: float, frames: int) -> np.ndarray:
        """(n,) the frame on screen at start, start + 1/fps, ...; n < frames where the video ends before."""
        wanted = start + np.arange(frames) / fps
        wanted = wanted[wanted < self.seconds - ROUNDING]
        return np.searchsorted(self.times, wanted + ROUNDING, side="right") - 1
