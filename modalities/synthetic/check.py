"""Reads generated images, videos and audio back, without the network that made them.

It answers whether a result of a model trained on the synthetic data shows what its caption asks for. The readers use
no learned weights: least-squares matching against rendered shapes, the track of the foreground, and the strongest
frequency of each third of the audio. They judge small models, so they tolerate strong noise and slightly wrong sizes,
places and pitches, and answer None where nothing is to be seen or heard.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

from core.errors import ShapeError, choose
from modalities.synthetic.draw import BACKGROUND, COLORS, MOVING_SHAPES, NOTES, NOTES_PER_CLIP, SHAPES, coverage

# Below these shares the answer is None. Pure noise stays below them, and shapes and tones under noise of standard
# deviation 0.2 of the full range stay above; tests hold both.
MIN_EXPLAINED = 0.12
MIN_TONE = 0.15
MIN_TRAVEL = 0.15  # of the frame, over the whole video
MAX_CENTS = 80  # from the nearest note; neighboring notes are 100 to 300 apart

_LARGEST = 32  # pixels; larger frames are reduced first, which also averages noise away


def read_image(image: np.ndarray) -> tuple[str | None, str | None, float]:
    """The color and the shape in an image.

    Args:
        image: (S, S, 3) uint8.

    Returns:
        color (a name of COLORS), shape (a name of SHAPES), both None where nothing is found, and the confidence:
        the share of the image's variance that the best rendered shape explains, in [0, 1].
    """
    if image.ndim != 3:
        raise ShapeError(f"image: expected (S, S, 3) uint8, got {tuple(image.shape)} {image.dtype}")
    light = light_of(image[None])[0]  # (S, S, 3)
    names, masks = _image_templates(light.shape[0])
    color, best, explained = best_match(light[None], masks[:, None])
    if explained < MIN_EXPLAINED:
        return None, None, explained
    return color, names[best], explained


def read_video(video: np.ndarray) -> tuple[str | None, str | None, str | None, float]:
    """The color, the shape and the motion in a video.

    Args:
        video: (T, S, S, 3) uint8, T >= 2.

    Returns:
        color, shape (a name of MOVING_SHAPES), motion (left, right, up, down, or None for less than MIN_TRAVEL of
        the frame), and the confidence: the share of its variance that one shape on a straight track explains.
    """
    if video.ndim != 4 or video.shape[0] < 2:
        raise ShapeError(f"video: expected (T, S, S, 3) uint8 with T >= 2, got {tuple(video.shape)} {video.dtype}")
    light = light_of(video)  # (T, S, S, 3)
    size = light.shape[1]
    track = _track(light)
    if track is None:
        return None, None, None, 0.0
    x, y = track
    names, masks = [], []
    for shape, radius in product(MOVING_SHAPES, (0.17, 0.2, 0.23, 0.26)):
        for dx, dy in product((-0.03, 0.0, 0.03), repeat=2):
            names.append(shape)
            masks.append(coverage(shape, size, x + dx, y + dy, radius))
    color, best, explained = best_match(light, np.stack(masks))
    if explained < MIN_EXPLAINED:
        return None, None, None, explained
    travel_x, travel_y = (float(x[-1] - x[0]), float(y[-1] - y[0]))
    motion = None
    if max(abs(travel_x), abs(travel_y)) >= MIN_TRAVEL:
        if abs(travel_x) >= abs(travel_y):
            motion = "right" if travel_x > 0 else "left"
        else:
            motion = "down" if travel_y > 0 else "up"
    return color, names[best], motion, explained


def read_audio(samples: np.ndarray, rate: float, count: int = NOTES_PER_CLIP) -> list[str | None]:
    """The notes of an audio clip, in order.

    Args:
        samples: (n,) or (n, channels) float in [-1, 1]; channels are averaged.
        rate: samples per second.
        count: number of notes, of equal duration.

    Returns:
        for each, a name of NOTES in any octave, or None for silence, noise, or a pitch more than MAX_CENTS away.
    """
    wave = np.asarray(samples, dtype=np.float64)
    if wave.ndim == 2:
        wave = wave.mean(axis=1)
    if wave.ndim != 1 or len(wave) < count * 64:
        raise ShapeError(f"samples: expected (n,) or (n, channels) with n >= {count * 64}, got {tuple(wave.shape)}")
    return [_note(part, rate) for part in np.array_split(wave, count)]


def check(modality: str, media: np.ndarray, caption: str, rate: float | None = None) -> dict[str, bool]:
    """Whether media shows what its caption asks for, attribute by attribute.

    Args:
        media: what `read_image`, `read_video` or `read_audio` takes.
        caption: as in `synthetic.captions(modality)`.
        rate: samples per second, needed for audio.

    Returns:
        {"color", "shape"} for an image, and "motion" too for a video; {"note 1", "note 2", ...} for audio.
    """
    return choose("modality", modality, _CHECKS)(media, caption, rate)


def accuracy(checks: Iterable[dict[str, bool]]) -> dict[str, float]:
    """Share of results that are right, for each attribute, and for "all" of a result's attributes at once."""
    checks = list(checks)
    if not checks:
        return {}
    shares = {name: float(np.mean([result[name] for result in checks])) for name in checks[0]}
    shares["all"] = float(np.mean([all(result.values()) for result in checks]))
    return shares


def _check_image(media: np.ndarray, caption: str, rate: float | None) -> dict[str, bool]:
    words = caption.split()
    color, shape, _ = read_image(media)
    return {"color": color in words, "shape": shape in words}


def _check_video(media: np.ndarray, caption: str, rate: float | None) -> dict[str, bool]:
    words = caption.split()
    color, shape, motion, _ = read_video(media)
    return {"color": color in words, "shape": shape in words, "motion": motion in words}


def _check_audio(media: np.ndarray, caption: str, rate: float | None) -> dict[str, bool]:
    if rate is None:
        raise ShapeError("check: audio needs its rate in samples per second")
    asked = caption.split()[1:]
    heard = read_audio(media, rate, len(asked))
    return {f"note {i}": a == b for i, (a, b) in enumerate(zip(asked, heard, strict=True), start=1)}


_CHECKS = {"image": _check_image, "video": _check_video, "audio": _check_audio}


def light_of(frames: np.ndarray) -> np.ndarray:
    """(T, S, S, 3) uint8 -> (T, s, s, 3) float32 above the background, s <= _LARGEST."""
    if frames.dtype != np.uint8 or frames.shape[-1] != 3 or frames.shape[1] != frames.shape[2]:
        raise ShapeError(f"frames: expected square uint8 (..., S, S, 3), got {tuple(frames.shape)} {frames.dtype}")
    if frames.shape[1] > _LARGEST:
        reduced = [Image.fromarray(frame).resize((_LARGEST, _LARGEST), Image.Resampling.BOX) for frame in frames]
        frames = np.stack([np.asarray(frame) for frame in reduced])
    return frames.astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)


@lru_cache(maxsize=4)
def _image_templates(size: int) -> tuple[list[str], np.ndarray]:
    """Names and (M, S, S) coverages, over a wider range of places and radii than the data has."""
    places = np.array(list(product(np.linspace(0.38, 0.62, 7), repeat=2)))  # (49, 2)
    names, masks = [], []
    for shape, radius in product(SHAPES, (0.25, 0.29, 0.33, 0.37, 0.41)):
        masks.append(coverage(shape, size, places[:, 0], places[:, 1], radius))
        names += [shape] * len(places)
    return names, np.concatenate(masks)


def best_match(light: np.ndarray, masks: np.ndarray) -> tuple[str, int, float]:
    """The color and the template that explain the light best: least squares over color, template and brightness.

    Args:
        light: (T, S, S, 3), above the background.
        masks: (M, T, S, S) coverages.

    Returns:
        color, template in [0, M), and 1 - (residual / variance of the light around its mean), not below 0.
    """
    flat = masks.reshape(len(masks), -1)  # (M, P)
    tints = np.array(list(COLORS.values()), dtype=np.float32) - np.array(BACKGROUND, dtype=np.float32)  # (6, 3)
    # For light = gain * mask x tint: residual = |light|^2 - 2 gain <mask x tint, light> + gain^2 |mask|^2 |tint|^2.
    inner = flat @ (light.reshape(-1, 3) @ tints.T)  # (M, 6)
    norm = (flat**2).sum(axis=1)[:, None] * (tints**2).sum(axis=1)[None]  # (M, 6)
    gain = np.clip(inner / np.maximum(norm, 1e-6), 0.5, 1.15)
    gained = 2 * gain * inner - gain**2 * norm  # (M, 6), what the template takes off the residual
    template, tint = np.unravel_index(np.argmax(gained), gained.shape)
    residual = float((light**2).sum() - gained[template, tint])
    variance = float(((light - light.mean(axis=(0, 1, 2))) ** 2).sum())
    explained = 1.0 - residual / variance if variance > 0 else 0.0
    return list(COLORS)[tint], int(template), max(explained, 0.0)


def _track(light: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Straight line through the center of the foreground: x (T,) and y (T,) in [0, 1], or None where there is none."""
    frames, size = light.shape[:2]
    # What lies along one of the colors, and not any light: gray noise has no color. Then a box of about the
    # shape's inner size, which takes single noisy pixels away.
    tints = np.array(list(COLORS.values()), dtype=np.float32) - np.array(BACKGROUND, dtype=np.float32)
    matched = _box(light, max(3, round(size / 6) | 1)) @ (tints / (tints**2).sum(axis=1, keepdims=True)).T  # (T,S,S,6)
    energy = (np.clip(matched, 0, None) ** 2).max(axis=(1, 2)).sum(axis=0)  # (6,)
    seen = matched[..., int(np.argmax(energy))]  # (T, S, S), about 1 inside the shape
    peaks = seen.max(axis=(1, 2))  # (T,)
    weights = np.clip(seen - 0.6 * peaks[:, None, None], 0, None)
    axis = (np.arange(size) + 0.5) / size
    mass = weights.sum(axis=(1, 2))
    present = (peaks > 0.25) & (mass > 0)
    if present.sum() < 2:
        return None
    time = np.arange(frames)
    lines = []
    for along in (1, 2):  # sum over y leaves x, sum over x leaves y
        center = (weights.sum(axis=along) @ axis)[present] / mass[present]
        slope, start = np.polyfit(time[present], center, 1, w=peaks[present])
        lines.append(start + slope * time)
    return lines[0], lines[1]


def _box(light: np.ndarray, width: int) -> np.ndarray:
    """Mean over width x width pixels; edges are repeated. Shapes unchanged."""
    half = width // 2
    for axis in (1, 2):
        pad = [(0, 0)] * light.ndim
        pad[axis] = (half, half)
        padded = np.pad(light, pad, mode="edge")
        light = np.lib.stride_tricks.sliding_window_view(padded, width, axis=axis).mean(axis=-1)
    return light


def _note(part: np.ndarray, rate: float) -> str | None:
    """The note of one stretch of audio."""
    length = len(part)
    inner = part[length // 12 : length - length // 12]  # neighbors may ring into the ends
    inner = inner - inner.mean()
    if not np.sqrt(np.mean(inner**2)) >= 0.005:  # silence, or NaN
        return None
    padded = 4 * len(inner)  # finer than the resolution, so that the peak's place is read to a few cents
    power = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), padded)) ** 2
    frequency = np.fft.rfftfreq(padded, 1 / rate)
    low, high = min(NOTES.values()) / 2 * 0.95, max(NOTES.values()) * 4 * 1.05  # octaves 3 to 6
    audible = (frequency >= low) & (frequency <= high)
    if not audible.any():
        return None
    peak = frequency[audible][np.argmax(power[audible])]
    tone = np.abs(frequency - peak) <= 2.5 * rate / len(inner)
    if power[tone].sum() < MIN_TONE * power.sum():
        return None
    cents = {name: 1200 * np.log2(peak / note) for name, note in NOTES.items()}
    away = {name: abs((value + 600) % 1200 - 600) for name, value in cents.items()}
    name = min(away, key=lambda each: away[each])
    return name if away[name] <= MAX_CENTS else None
