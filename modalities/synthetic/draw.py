"""Records drawn in code: labeled shapes, moving shapes and note sequences, with exact captions.

Nothing is downloaded and nothing is stored: record `index` is a function of (seed, index). Combinations of attributes
(color, shape, motion, notes) are walked in turn, so every stretch of `len(captions(modality))` records holds each
caption once; place, size, speed and loudness vary within a combination. The vocabulary is small and compositional, so
that a very small model learns it in minutes and `modalities.synthetic.check` can tell whether a file is right.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import torch

from core.errors import ConfigError, DataError, choose
from core.keys import generator, key
from modalities.base import Record
from modalities.data.sources.account import Account

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 45),
    "cyan": (40, 210, 220),
    "magenta": (220, 50, 215),
}
BACKGROUND = (18, 18, 22)
SHAPES = ("circle", "square", "triangle", "cross")
MOVING_SHAPES = ("circle", "cross")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y)
NOTES: dict[str, float] = {"C": 261.63, "D": 293.66, "E": 329.63, "F": 349.23, "G": 392.00, "A": 440.00}  # Hz, octave 4
NOTES_PER_CLIP = 3

KEPT_BYTES = 64 * 2**20  # of drawn media in one source, in each data worker

_SUBPIXELS = 4  # along each axis


@lru_cache(maxsize=8)
def _subpixel_centers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x as (1, 1, n) and y as (1, n, 1), in units of the frame's size, for n = size * _SUBPIXELS."""
    axis = ((np.arange(size * _SUBPIXELS) + 0.5) / (size * _SUBPIXELS)).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def coverage(shape: str, size: int, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Share of each pixel that a shape covers, by 4x4 supersampling.

    Args:
        shape: one of SHAPES.
        size: S, pixels of a side of the frame.
        x, y: (T,) center of the shape in each frame, in [0, 1] of the frame, y downwards.
        radius: in units of the frame's size; the shapes are scaled to look equally large at one radius.

    Returns:
        (T, S, S) float32 in [0, 1].
    """
    grid_x, grid_y = _subpixel_centers(size)
    dx = (grid_x - x[:, None, None].astype(np.float32)) / np.float32(radius)  # (T, 1, n)
    dy = (grid_y - y[:, None, None].astype(np.float32)) / np.float32(radius)  # (T, n, 1)
    if shape == "circle":
        inside = dx * dx + dy * dy <= 1.0
    elif shape == "square":
        inside = (np.abs(dx) <= 0.9) & (np.abs(dy) <= 0.9)
    elif shape == "triangle":  # upright, apex at dy = -1, base at dy = 0.9
        inside = (np.abs(dx) <= (dy + 1.0) * 0.58) & (dy <= 0.9)
    elif shape == "cross":
        in_x, in_y = np.abs(dx), np.abs(dy)
        inside = ((in_x <= 0.34) & (in_y <= 1.0)) | ((in_y <= 0.34) & (in_x <= 1.0))
    else:
        raise ConfigError(f"shape: {shape!r} is not one of {', '.join(SHAPES)}")
    frames = inside.shape[0]
    blocks = inside.reshape(frames, size, _SUBPIXELS, size, _SUBPIXELS)
    # Summing bytes along the contiguous axis first is several times faster than a mean over two axes.
    counts = blocks.view(np.uint8).sum(axis=-1, dtype=np.uint8).sum(axis=2, dtype=np.uint8)
    return counts.astype(np.float32) / _SUBPIXELS**2


def paint(mask: np.ndarray, color: str, brightness: float = 1.0) -> np.ndarray:
    """(..., S, S) coverage -> (..., S, S, 3) uint8: the color over the dark background."""
    background = np.array(BACKGROUND, dtype=np.float32)
    foreground = np.array(COLORS[color], dtype=np.float32) * brightness
    return np.rint(background + mask[..., None] * (foreground - background)).astype(np.uint8)


def image_captions() -> list[str]:
    """'a red circle' and so on, 24 of them."""
    return [f"a {color} {shape}" for color, shape in product(COLORS, SHAPES)]


def video_captions() -> list[str]:
    """'a blue cross moving left' and so on, 48 of them."""
    return [f"a {color} {shape} moving {motion}" for color, shape, motion in product(COLORS, MOVING_SHAPES, MOTIONS)]


def audio_captions() -> list[str]:
    """'notes C E G' and so on, 216 of them."""
    return ["notes " + " ".join(notes) for notes in product(NOTES, repeat=NOTES_PER_CLIP)]


_CAPTIONS = {"image": image_captions, "video": video_captions, "audio": audio_captions}


def captions(modality: str) -> list[str]:
    """Every caption that the synthetic data of a modality holds, in the order in which records walk them."""
    return choose("modality", modality, _CAPTIONS)()


def draw_image(caption: str, size: int, draws: list[float]) -> np.ndarray:
    """'a red circle' and three draws in [0, 1) (x, y, radius) plus one for brightness -> (size, size, 3) uint8."""
    _, color, shape = caption.split()
    x = np.array([0.5 + 0.16 * (draws[0] - 0.5)])
    y = np.array([0.5 + 0.16 * (draws[1] - 0.5)])
    mask = coverage(shape, size, x, y, radius=0.31 + 0.07 * draws[2])
    return paint(mask[0], color, brightness=0.92 + 0.08 * draws[3])


def draw_video(caption: str, size: int, frames: int, draws: list[float]) -> np.ndarray:
    """'a blue cross moving left' and four draws (offset across, travel, radius, brightness) -> (T, S, S, 3) uint8.

    The shape passes the middle of the frame at half time; it travels 0.5 to 0.6 of the frame at constant speed.
    """
    _, color, shape, _, motion = caption.split()
    step_x, step_y = MOTIONS[motion]
    along = (np.arange(frames) / max(frames - 1, 1) - 0.5) * (0.5 + 0.1 * draws[1])
    across = 0.2 * (draws[0] - 0.5)
    x = 0.5 + step_x * along + abs(step_y) * across
    y = 0.5 + step_y * along + abs(step_x) * across
    mask = coverage(shape, size, x, y, radius=0.21 + 0.03 * draws[2])
    return paint(mask, color, brightness=0.92 + 0.08 * draws[3])


def draw_audio(caption: str, samples: int, rate: float, octave: int, draws: list[float]) -> np.ndarray:
    """'notes C E G' and two draws (amplitude, timbre) -> (samples, 1) float32 within [-0.7, 0.7].

    Each note is a sine with a little of its second harmonic, lasts a third of the video, and starts and ends at
    silence with phase 0 at its start.
    """
    names = caption.split()[1:]
    edges = np.rint(np.linspace(0, samples, len(names) + 1)).astype(int)
    amplitude, second = 0.45 + 0.1 * draws[0], 0.1 + 0.1 * draws[1]
    wave = np.empty((samples, 1), dtype=np.float32)
    for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True):
        phase = 2 * np.pi * NOTES[name] * 2.0 ** (octave - 4) / rate * np.arange(stop - start)
        wave[start:stop, 0] = amplitude * _envelope(stop - start) * (np.sin(phase) + second * np.sin(2 * phase))
    return wave


@lru_cache(maxsize=8)
def _envelope(samples: int) -> np.ndarray:
    """(samples,) raised-cosine rise over the first tenth, and fall over the last fifth."""
    time = (np.arange(samples) + 0.5) / samples
    return np.sin(0.5 * np.pi * np.clip(np.minimum(time / 0.1, (1 - time) / 0.2), 0, 1)) ** 2


class SyntheticSource:
    """Records of one modality, drawn when they are first read and kept; see the module's text.

    Args:
        modality: image, video or audio.
        size: pixels of a side of images and frames; unused by audio.
        seed: another seed gives other records of the same captions, for example held-out ones.
        count: number of records.
        frames: T of a video.
        rate: frames per second of video, samples per second of audio.
        seconds: duration of audio.
        octave: of the notes; 4 spans 262-440 Hz, 5 spans 523-880 Hz.

    Raises ConfigError for an unknown modality or a value out of range.
    """

    def __init__(
        self,
        modality: str,
        size: int = 16,
        seed: int = 0,
        count: int = 100_000,
        frames: int = 9,
        rate: float | None = None,
        seconds: float = 1.0,
        octave: int = 5,
    ):
        self.captions = captions(modality)
        self.modality, self.size, self.seed, self.count = modality, size, seed, count
        self.frames, self.seconds, self.octave = frames, seconds, octave
        self.rate = rate or {"image": None, "video": 8.0, "audio": 4000.0}[modality]
        problems = []
        if count < 1:
            problems.append(f"count: {count} records, at least 1 is needed")
        if modality != "audio" and size < 8:
            problems.append(f"size: {size} pixels, at least 8 are needed to tell the shapes apart")
        if modality == "video" and frames < 2:
            problems.append(f"frames: {frames}, at least 2 are needed to see a motion")
        if modality == "audio":
            highest = 2 * max(NOTES.values()) * 2.0 ** (octave - 4)
            if self.rate < 2 * highest:
                problems.append(f"rate: {self.rate:g} Hz, notes of octave {octave} need at least {2 * highest:g} Hz")
            if seconds < 0.3:
                problems.append(f"seconds: {seconds:g}, at least 0.3 is needed to tell the notes apart")
        if problems:
            raise ConfigError(problems)
        self._kept: dict[int, Record] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise DataError(f"synthetic {self.modality}: record {index} of {self.count}")
        record = self._kept.get(index)
        if record is None:
            record = self._draw(index)
            assert isinstance(record.media, np.ndarray)
            if self._bytes + record.media.nbytes <= KEPT_BYTES:
                self._kept[index] = record
                self._bytes += record.media.nbytes
        return record

    def _draw(self, index: int) -> Record:
        caption = self.captions[index % len(self.captions)]
        draws = torch.rand(4, generator=generator("embedded", self.modality, self.seed, index)).tolist()
        if self.modality == "image":
            media = draw_image(caption, self.size, draws)
        elif self.modality == "video":
            media = draw_video(caption, self.size, self.frames, draws)
        else:
            media = draw_audio(caption, round(self.seconds * self.rate), self.rate, self.octave, draws)
        media.flags.writeable = False  # read again in the next epoch
        name = f"{self.seed}-{index:08d}"
        return Record(
            key=name,
            origin=f"synthetic {self.modality} {name}",
            media=media,
            captions=(caption,),
            label=caption.removeprefix("a "),
            rate=self.rate,
        )

    def labels(self) -> list[str]:
        return sorted(caption.removeprefix("a ") for caption in self.captions)

    def account(self) -> Account:
        return Account()

    def fingerprint(self) -> str:
        parts = (self.modality, self.size, self.seed, self.count, self.frames, self.seconds, self.octave)
        return f"{key('synthetic', 'v1', str(self.rate), *map(str, parts)):016x}"
