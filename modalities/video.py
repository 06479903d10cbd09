"""Clips: a window of any video at a fixed frame rate and size, blocks of pixels or latents as tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoencoders.config import AutoencoderConfig
from autoencoders.kinds import build_pretrained, pretrained_kind
from autoencoders.transforms import SpaceTimePixels
from core.errors import ConfigError, DataError, nearest
from modalities.base import AutoencoderAdapter, Record
from modalities.image import PIXEL_PATCH, fit_frames, flip_at_random, frame_problems, height_and_width
from modalities.media.pictures import read_image
from modalities.media.video import index_video, read_frames
from modalities.media.video_decoders import DECODERS
from modalities.media.video_pyav import WindowError
from modalities.media.writing import write_video

WINDOWS = 4  # of one file are tried
SHORT = ("refuse", "repeat_last")


@dataclass
class VideoConfig:
    """
    Attributes:
        size, patch, crop, background, min_size, flip: as of ImageConfig.
        frames: of a clip; 1 + a multiple of `patch_frames` with `first_frame_alone`, else a multiple of it; 1 + a
            multiple of 4 for wan22.
        fps: frames per second; a slower file shows frames more than once.
        autoencoder: of the clips; space_time_pixels is none.
        patch_frames: frames in one token, 2 where left out. Read without an autoencoder only, as the next one.
        first_frame_alone: the first tokens hold the first frame only (default), so that it can be given.
        short: refuse a file with fewer frames than a clip, or repeat_last to fill up with its last frame.
        backend: pyav, decord or torchcodec decode; the same frames from all, or the file is refused (docs/data.md).
    """

    size: list[int] = field(default_factory=lambda: [16, 16])
    frames: int = 9
    fps: float = 8.0
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig("space_time_pixels"))
    patch: int | None = None
    patch_frames: int | None = None
    first_frame_alone: bool | None = None
    crop: str = "center"
    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    min_size: int = 0
    short: str = "refuse"
    flip: bool = False
    backend: str = "pyav"

    def problems(self) -> list[str]:
        found = frame_problems(self, "video", self.frames)
        if not 0 < self.fps < 500:
            found.append(f"fps: {self.fps} must be above 0 and below 500")
        patch_frames, first_alone = self.blocks()
        if pretrained_kind(self.autoencoder, "video"):
            for name in ("patch_frames", "first_frame_alone"):
                if getattr(self, name) is not None:
                    found.append(f"{name}: not read by autoencoder.kind {self.autoencoder.kind!r}; leave it out")
        elif patch_frames < 1:
            found.append(f"patch_frames: {patch_frames} must be at least 1")
        elif self.frames < 1:
            found.append(f"frames: {self.frames} must be at least 1")
        elif rest := (self.frames - first_alone) % patch_frames:
            alone = "1 plus " if first_alone else ""
            legal = [count for count in (self.frames - rest, self.frames - rest + patch_frames) if count >= 1]
            found.append(
                f"frames: {self.frames} is not {alone}a multiple of patch_frames {patch_frames}; "
                f"nearest: {' or '.join(map(str, legal))}"
            )
        if self.short not in SHORT:
            found.append(f"short: {self.short!r} is not one of {', '.join(SHORT)}.{nearest(self.short, SHORT)}")
        if self.backend not in DECODERS:
            allowed = ", ".join(DECODERS)
            found.append(f"backend: {self.backend!r} is not one of {allowed}.{nearest(self.backend, DECODERS)}")
        return found

    def blocks(self) -> tuple[int, bool]:
        """(patch_frames, first_frame_alone), with what was left out."""
        frames = 2 if self.patch_frames is None else self.patch_frames
        return frames, True if self.first_frame_alone is None else self.first_frame_alone


class VideoAdapter(AutoencoderAdapter):
    """Clips (T, 3, H, W) in [-1, 1] and their tokens. Raises ConfigError when the config has problems."""

    modality = "video"

    def __init__(self, config: VideoConfig):
        if found := config.problems():
            raise ConfigError(found)
        self.config = config
        size = config.frames, *height_and_width(config.size)
        if kind := pretrained_kind(config.autoencoder, self.modality):
            super().__init__(build_pretrained(kind, config.autoencoder, size, config.patch), size)
        else:
            patch = PIXEL_PATCH if config.patch is None else config.patch
            super().__init__(SpaceTimePixels(patch, *config.blocks()), size)

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        """A window at a random place in time, the whole file where it is not longer than a clip.

        Where a window cannot be decoded another one is drawn: a damaged place is not a damaged file.
        """
        config = self.config
        index = index_video(record.media, record.origin, record.rate)
        there = index.count(config.fps)
        if there < config.frames and config.short == "refuse":
            raise DataError(
                f"{record.origin}: {there} frames at {config.fps:g} fps ({index.seconds:.2f} s), "
                f"a clip needs {config.frames}"
            )
        room = max(0.0, index.seconds - config.frames / config.fps)
        tried = set()
        for _ in range(WINDOWS):
            wanted = index.shown(room * torch.rand((), generator=generator).item(), config.fps, config.frames)
            wanted = np.pad(wanted, (0, config.frames - len(wanted)), mode="edge")
            if (window := tuple(wanted)) in tried:
                continue
            tried.add(window)
            try:
                frames = read_frames(record.media, record.origin, index, wanted, config.backend, config.background)
            except WindowError as error:
                damage = str(error)  # not the error, which holds an open decoder
                continue
            return fit_frames(frames, config, record.origin, generator, aspect=index.aspect)
        raise DataError(f"{damage} (windows tried: {len(tried)})")

    def augment(self, media: Tensor, generator: torch.Generator) -> Tensor:
        return flip_at_random(media, generator) if self.config.flip else media

    def load_first_frame(self, record: Record, generator: torch.Generator) -> Tensor:
        """A picture as the first frame of a clip (T, 3, H, W); the later frames, to be generated, repeat it."""
        pixels = read_image(record.media, record.origin, self.config.background)
        frame = fit_frames(pixels[None], self.config, record.origin, generator)
        return frame.repeat(self.config.frames, 1, 1, 1)

    def given_first_frame(self) -> Tensor:
        """(N,) bool, True for the tokens of the first frame.

        Raises:
            ConfigError: tokens hold the first frame together with later ones.
        """
        patch_frames, first_alone = self.config.blocks()
        if not first_alone and patch_frames > 1:
            raise ConfigError(
                f"first_frame_alone: must be true to give a first frame, since tokens hold {patch_frames} frames"
            )
        return self.ids()[:, 0] == 0

    def write(self, media: Tensor, path: Path) -> Path:
        """MP4 at the config's frame rate, small clips enlarged."""
        return write_video(media, path, self.config.fps)
