"""Videos: a window of any video at a fixed frame rate and size, blocks of pixels or latents as tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from autoencoders.config import AutoencoderConfig
from autoencoders.kinds import KINDS, build
from autoencoders.transforms import SpaceTimePixelsConfig
from core.errors import ConfigError, DataError, nearest
from core.kinds import kinds
from modalities.base import AutoencoderAdapter, Known, Media, Record, Windows
from modalities.image import (
    fit_frames,
    flip_at_random,
    frame_problems,
    gray_ramp,
    height_and_width,
    sizes_problems,
)
from modalities.media.images import read_image
from modalities.media.opening import WindowError
from modalities.media.video import index_video, read_frames, video_extent
from modalities.media.video_decoders import DECODERS
from modalities.media.video_index import VideoIndex
from modalities.media.writing import write_video

WINDOWS = 4  # of one file are tried
SHORT = ("refuse", "repeat_last")


@dataclass
class VideoConfig:
    """
    Attributes:
        size, sizes, patch, crop, background, min_size, flip: as of ImageConfig.
        frames: of a video; 1 + a multiple of `patch_frames` with `first_frame_alone`, else a multiple of it; 1 + a
            multiple of 4 for wan22.
        fps: frames per second; a slower file shows frames more than once.
        autoencoder: of the videos; space_time_pixels needs no weights.
        patch_frames: frames in one token, 2 where left out. Only space_time_pixels reads this and the next.
        first_frame_alone: the first tokens hold the first frame only (default), so that it can be given.
        short: refuse a file with fewer frames than a video, or repeat_last to fill up with its last frame.
        backend: pyav, decord or torchcodec decode; the same frames from all, or the file is refused (docs/data.md).
    """

    size: list[int] = field(default_factory=lambda: [16, 16])
    frames: int = 9
    fps: float = 8.0
    autoencoder: AutoencoderConfig = field(default_factory=SpaceTimePixelsConfig, metadata=kinds(KINDS["video"]))
    patch: int | None = None
    patch_frames: int | None = None
    first_frame_alone: bool | None = None
    crop: str = "center"
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    min_size: int = 0
    short: str = "refuse"
    flip: bool = False
    backend: str = "pyav"
    sizes: list[list[int]] = field(default_factory=list)

    def problems(self) -> list[str]:
        found = frame_problems(self, "video", self.frames) or sizes_problems(self, "video", self.frames)
        if not 0 < self.fps < 500:
            found.append(f"fps: {self.fps} must be above 0 and below 500")
        if self.short not in SHORT:
            found.append(f"short: {self.short!r} is not one of {', '.join(SHORT)}.{nearest(self.short, SHORT)}")
        if self.backend not in DECODERS:
            allowed = ", ".join(DECODERS)
            found.append(f"backend: {self.backend!r} is not one of {allowed}.{nearest(self.backend, DECODERS)}")
        return found


class VideoAdapter(AutoencoderAdapter):
    """Videos (T, 3, H, W) in [-1, 1] and their tokens. Raises ConfigError when the config has problems."""

    modality = "video"
    known_files = MappingProxyType(
        {"video": "a video that is given as a whole", "first_frame": "an image that the video starts from"}
    )

    def __init__(self, config: VideoConfig):
        if found := config.problems():
            raise ConfigError(found)
        self.config = config
        size = config.frames, *height_and_width(config.size)
        super().__init__(build(config, size), size)

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        """A window at a random place in time, the whole file where that is no longer than a window.

        Where a window cannot be decoded another one is drawn: a damaged place is not a damaged file.
        """
        index = self._index(record)
        room = max(0.0, index.seconds - self.config.frames / self.config.fps)
        tried = set()
        for _ in range(WINDOWS):
            wanted = self._shown(record, index, room * torch.rand((), generator=generator).item())
            if (window := tuple(wanted)) in tried:
                continue
            tried.add(window)
            try:
                return self._read(record, index, wanted, generator)
            except WindowError as error:
                damage = str(error)  # not the error, which holds an open decoder
        raise DataError(f"{damage} (windows tried: {len(tried)})")

    def extent(self, record: Record) -> tuple[int, int]:
        """(H, W) of a record's frames before they are resized."""
        return video_extent(record.readable(), record.origin)

    def windows(self, record: Record) -> Windows:
        config, index = self.config, self._index(record)
        room = index.seconds - config.frames / config.fps
        if config.short == "refuse":
            room = max(0.0, room)  # the last frame of the window may be cut short
        fills = config.short == "repeat_last"
        return Windows(index.start, index.start + room, fills, partial(self._window, record, index))

    def _index(self, record: Record) -> VideoIndex:
        """Raises DataError for a video that is too short."""
        config = self.config
        index = index_video(record.readable(), record.origin, record.rate)
        there = index.count(config.fps)
        if there < config.frames and config.short == "refuse":
            raise DataError(
                f"{record.origin}: {there} frames at {config.fps:g} fps ({index.seconds:.2f} s), "
                f"a video needs {config.frames}"
            )
        return index

    def _window(self, record: Record, index: VideoIndex, start: float, generator: torch.Generator) -> Tensor:
        return self._read(record, index, self._shown(record, index, start - index.start), generator)

    def _shown(self, record: Record, index: VideoIndex, start: float) -> np.ndarray:
        """(T,) numbers of the frames of a window; the first and the last stand for what lies before and after them."""
        wanted = index.shown(start, self.config.fps, self.config.frames)
        if not len(wanted):
            raise WindowError(f"{record.origin}: ends {index.seconds:.2f} s behind its first frame")
        return np.pad(wanted, (0, self.config.frames - len(wanted)), mode="edge").clip(min=0)

    def _read(self, record: Record, index: VideoIndex, wanted: np.ndarray, generator: torch.Generator) -> Tensor:
        config = self.config
        frames = read_frames(record.readable(), record.origin, index, wanted, config.backend, config.background)
        return fit_frames(frames, config, record.origin, generator, aspect=index.aspect)

    def stand_in(self) -> Media:
        frame = gray_ramp(self.size[1:], self.config.min_size)
        return Media(np.repeat(frame[None], self.config.frames, axis=0), rate=self.config.fps)

    def augment(self, media: Tensor, generator: torch.Generator) -> Tensor:
        return flip_at_random(media, generator) if self.config.flip else media

    def seconds(self) -> Tensor:
        steps, stride = self.grid()[0], self.autoencoder.spec.stride[0]
        ends = torch.arange(1, steps + 1, dtype=torch.float64) * stride - (steps * stride - self.config.frames)
        starts = torch.cat([torch.zeros(1, dtype=torch.float64), ends[:-1]])  # a first frame alone ends at 1
        return (starts + ends) / 2 / self.config.fps

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        """The window of a whole video that begins with its first frame."""
        if len(files) > 1:
            raise ConfigError("--video gives all frames; not with --first-frame")
        if "video" in files:
            windows = self.windows(files["video"])
            return Known.whole(self, windows.load(windows.first, draw()))
        media = self.load_first_frame(files["first_frame"], draw())
        first = torch.arange(len(media)) == 0
        return Known(media, self.first_frame_mask(), first[:, None, None, None])

    def load_first_frame(self, record: Record, generator: torch.Generator) -> Tensor:
        """An image as the first frame of a video (T, 3, H, W); the later frames, to be generated, repeat it."""
        pixels = read_image(record.readable(), record.origin, self.config.background)
        frame = fit_frames(pixels[None], self.config, record.origin, generator)
        return frame.repeat(self.config.frames, 1, 1, 1)

    def first_frame_mask(self) -> Tensor:
        """(N,) bool, True for the tokens of the first frame.

        Raises:
            ConfigError: tokens hold the first frame together with later ones.
        """
        together = self.size[0] - (self.grid()[0] - 1) * self.autoencoder.spec.stride[0]
        if together > 1:
            raise ConfigError(
                f"first_frame_alone: must be true to give a first frame, since tokens hold {together} frames"
            )
        return self.ids()[:, 0] == 0

    def write(self, media: Tensor, path: Path) -> Path:
        """MP4 at the config's frame rate, small videos enlarged."""
        return write_video(media, path, self.config.fps)
