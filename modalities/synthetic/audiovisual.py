"""Videos with their audio, drawn in code: a shape that moves, and a note for every frame whose pitch is its height.

The caption names color and shape alone. Where the shape is, which way it moves and how far is stated by neither the
caption nor the other part, so that audio for a given video, or a video for a given audio, is a real question. The
second harmonic of the notes tells the shape: nearly none for a circle, a strong one for a cross.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from core.errors import ConfigError, DataError
from core.keys import generator, key
from modalities.base import Media, Record
from modalities.data.sources.account import Account
from modalities.synthetic.draw import COLORS, MOVING_SHAPES, coverage, paint

MOTIONS = ("up", "down", "hop", "dip")  # height over time
LOW, HIGH = 0.2, 0.8  # heights of the lowest and the highest note, in units of the frame
LOWEST = 250.0  # Hz
OCTAVES = 1.5  # between the lowest and the highest note
NOTES = 8
SECOND_HARMONIC = {"circle": 0.05, "cross": 0.5}  # over the fundamental
HIGHEST = 2 * LOWEST * 2**OCTAVES  # Hz, of the second harmonic


def captions() -> list[str]:
    """'a red circle' and so on, 12 of them."""
    return [f"a {color} {shape}" for color, shape in product(COLORS, MOVING_SHAPES)]


def heights(motion: str, center: float, travel: float, frames: int) -> np.ndarray:
    """(T,) height of the shape's center at the middle of each frame, 0 at the bottom of the frame and 1 at its top."""
    u = (np.arange(frames) + 0.5) / frames
    ramp, arch = u - 0.5, 4 * u * (1 - u) - 0.5
    return center + travel * {"up": ramp, "down": -ramp, "hop": arch, "dip": -arch}[motion]


def pitch(note: np.ndarray) -> np.ndarray:
    """Hz of notes 0 to NOTES - 1, equal steps on the scale of octaves."""
    return LOWEST * 2.0 ** (note / (NOTES - 1) * OCTAVES)


def nearest_note(height: np.ndarray) -> np.ndarray:
    """The note of a height."""
    return np.clip(np.rint((height - LOW) / (HIGH - LOW) * (NOTES - 1)), 0, NOTES - 1)


def draw_audio(height: np.ndarray, shape: str, samples: int, rate: float, amplitude: float) -> np.ndarray:
    """(T,) heights -> (samples, 1) float32: a note for each frame, which starts at phase 0 and fades in and out."""
    edges = np.rint(np.linspace(0, samples, len(height) + 1)).astype(int)
    wave = np.empty((samples, 1), dtype=np.float32)
    for note, start, stop in zip(nearest_note(height), edges[:-1], edges[1:], strict=True):
        u = (np.arange(stop - start) + 0.5) / (stop - start)
        fade = np.sin(0.5 * np.pi * np.clip(np.minimum(u, 1 - u) / 0.1, 0, 1)) ** 2
        phase = 2 * np.pi * pitch(note) / rate * np.arange(stop - start)
        wave[start:stop, 0] = amplitude * fade * (np.sin(phase) + SECOND_HARMONIC[shape] * np.sin(2 * phase))
    return wave


class AudiovisualSource:
    """Records with the parts `video` and `audio`, drawn when they are read: a function of (seed, index).

    Args:
        size: pixels of a side.
        frames: T of a video.
        fps: frames per second; the audio lasts as long as the frames.
        rate: samples of audio per second.

    Raises ConfigError for a value out of range.
    """

    def __init__(
        self, size: int = 16, seed: int = 0, count: int = 100_000, frames: int = 9, fps: float = 8.0, rate: float = 4000
    ):
        self.size, self.seed, self.count, self.frames = size, seed, count, frames
        self.fps, self.rate = fps, rate
        self.captions = captions()
        problems = []
        if count < 1:
            problems.append(f"count: {count} records, at least 1 is needed")
        if size < 12:
            problems.append(f"size: {size} pixels, at least 12 are needed to tell the heights apart")
        if frames < 4:
            problems.append(f"frames: {frames}, at least 4 are needed to tell the motions apart")
        if rate < 2 * HIGHEST:
            problems.append(f"audio_rate: {rate:g} Hz, the notes need at least {2 * HIGHEST:.0f} Hz")
        if rate / fps < 200:
            problems.append(
                f"rate: {fps:g} frames a second leave {rate / fps:.0f} samples a note, at least 200 are needed"
            )
        if problems:
            raise ConfigError(problems)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        caption, _, video, audio = self.draw(index)
        name = f"{self.seed}-{index:08d}"
        return Record(
            key=name,
            origin=f"synthetic audiovisual {name}",
            media=video,
            captions=(caption,),
            label=caption.removeprefix("a "),
            rate=self.fps,
            parts={"video": Media(video, rate=self.fps), "audio": Media(audio, rate=self.rate)},
        )

    def draw(self, index: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Caption, heights (T,), video (T, S, S, 3) uint8 and audio (samples, 1) float32 of a record."""
        if not 0 <= index < self.count:
            raise DataError(f"synthetic audiovisual: record {index} of {self.count}")
        caption = self.captions[index % len(self.captions)]
        _, color, shape = caption.split()
        draws = torch.rand(7, generator=generator("synthetic", "audiovisual", self.seed, index)).tolist()
        motion = MOTIONS[int(draws[0] * len(MOTIONS))]
        travel = 0.4 + 0.15 * draws[1]
        center = 0.5 + (2 * draws[2] - 1) * (0.3 - travel / 2)
        height = heights(motion, center, travel, self.frames)
        x = np.full(self.frames, 0.5 + 0.4 * (draws[3] - 0.5))
        mask = coverage(shape, self.size, x, 1 - height, radius=0.2 + 0.03 * draws[4])
        video = paint(mask, color, brightness=0.92 + 0.08 * draws[5])
        samples = round(self.frames / self.fps * self.rate)
        return caption, height, video, draw_audio(height, shape, samples, self.rate, amplitude=0.4 + 0.1 * draws[6])

    def labels(self) -> list[str]:
        return sorted(caption.removeprefix("a ") for caption in self.captions)

    def account(self) -> Account:
        return Account()

    def fingerprint(self) -> str:
        parts = (self.size, self.seed, self.count, self.frames, self.fps, self.rate)
        return f"{key('synthetic audiovisual', 'v1', *map(str, parts)):016x}"
