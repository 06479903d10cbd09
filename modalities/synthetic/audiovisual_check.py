"""Reads videos and audio of `synthetic.audiovisual` back, without a network: heights, pitches, color, shape, timbre.

A track is right when the mean distance between two heights over time stays below TOLERANCE of the frame; neighboring
notes are 0.086 apart. Next to every share stands the one of shuffled pairs, which is what chance gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np

from core.errors import ShapeError
from modalities.synthetic.audiovisual import HIGH, HIGHEST, LOW, LOWEST, OCTAVES, SECOND_HARMONIC
from modalities.synthetic.check import best_match, light_of
from modalities.synthetic.draw import BACKGROUND, COLORS, MOVING_SHAPES, coverage

TOLERANCE = 0.08  # of the frame, mean over time
SHUFFLES = 7  # ways in which pairs are shuffled to measure chance
_STRONG = float(np.mean(list(SECOND_HARMONIC.values()))) / 1.4  # second harmonic that tells a cross from a circle


def read_video(video: np.ndarray) -> tuple[np.ndarray, str, str]:
    """(T, S, S, 3) uint8 -> heights (T,) in [0, 1], the color and the shape that explain the frames best."""
    light = light_of(video)  # (T, s, s, 3)
    size = light.shape[1]
    tints = np.array(list(COLORS.values()), np.float32) - np.array(BACKGROUND, np.float32)
    matched = light @ (tints / (tints**2).sum(axis=1, keepdims=True)).T  # (T, s, s, colors)
    seen = matched[..., int(np.argmax((np.clip(matched, 0, None) ** 2).sum(axis=(0, 1, 2))))]
    weights = np.clip(seen - 0.4 * np.maximum(seen.max(axis=(1, 2), keepdims=True), 0.25), 0, None)
    axis, mass = (np.arange(size) + 0.5) / size, weights.sum(axis=(1, 2)) + 1e-9
    x, y = weights.sum(axis=1) @ axis / mass, weights.sum(axis=2) @ axis / mass
    y = np.where(mass > 1e-3, y, 0.0)
    names, masks = zip(
        *((shape, coverage(shape, size, x, y, r)) for shape, r in product(MOVING_SHAPES, (0.18, 0.2, 0.22, 0.24))),
        strict=True,
    )
    color, best, _ = best_match(light, np.stack(masks))
    return 1 - y, color, names[best]


def read_audio(samples: np.ndarray, rate: float, frames: int) -> tuple[np.ndarray, str]:
    """(n,) or (n, 1) float -> heights (T,) of the strongest pitch in each frame's time, and the shape of the timbre."""
    wave = np.asarray(samples, dtype=np.float64).reshape(len(samples), -1).mean(axis=1)
    if len(wave) < frames * 100:
        raise ShapeError(f"samples: {len(wave)} are too few for {frames} notes")
    edges, padded = np.linspace(0, len(wave), frames + 1), 8192
    frequency = np.fft.rfftfreq(padded, 1 / rate)
    fundamental = (frequency > 0.8 * LOWEST) & (frequency < 1.1 * HIGHEST / 2)
    height, second = [], []
    for start, stop in pairwise(edges):
        part = wave[int(start) : int(stop)]
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)), padded)) ** 2
        peak = frequency[fundamental][np.argmax(power[fundamental])]
        height.append(LOW + np.log2(peak / LOWEST) / OCTAVES * (HIGH - LOW))
        near, octave = (power[np.abs(frequency - f) < 60].sum() for f in (peak, 2 * peak))
        second.append(octave / max(near, 1e-12))
    return np.array(height), "cross" if np.sqrt(np.median(second)) > _STRONG else "circle"


def agreement(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Heights (n, T) of both sides -> share of tracks that agree, and the share among shuffled pairs.

    Raises ShapeError for fewer than two pairs, which cannot be shuffled.
    """
    if one.shape != other.shape or len(one) < 2:
        raise ShapeError(f"agreement: two arrays (n, T) with n >= 2 are needed, got {one.shape} and {other.shape}")
    shifts = sorted({1 + (len(one) - 1) * turn // SHUFFLES for turn in range(SHUFFLES)})
    chance = np.mean([_right(one, np.roll(other, shift, axis=0)) for shift in shifts])
    return {"right": _right(one, other), "chance": float(chance)}


def _right(one: np.ndarray, other: np.ndarray) -> float:
    return float((np.abs(one - other).mean(axis=1) < TOLERANCE).mean())


def words_right(captions: Sequence[str], colors: Sequence[str], shapes: Sequence[str]) -> dict[str, float]:
    """Share of samples with the color, and with the shape, of their caption."""
    wanted = [caption.split()[1:3] for caption in captions]
    return {
        "color": float(np.mean([color == words[0] for color, words in zip(colors, wanted, strict=True)])),
        "shape": float(np.mean([shape == words[1] for shape, words in zip(shapes, wanted, strict=True)])),
    }
