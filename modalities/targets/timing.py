"""Which stretch of time each step of a trunk and of an encoder stands for, and features carried from one to the other.

Time is counted in the media's own units: frames of a video, samples of audio. A span is (start, end), end excluded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import ShapeError

EPSILON = 1e-6  # of a step: spans come from exact ratios, so only rounding is forgiven


def frame_spans(frames: int, steps: int, stride: int) -> Tensor:
    """(steps, 2) float64: the frames that each latent step of a video holds.

    Either every step holds `stride` frames, or the first holds the first frame alone and every other one `stride`
    frames (the causal video autoencoders, and SpaceTimePixels with `first_frame_alone`).

    Raises:
        ShapeError: neither gives `frames`.
    """
    if steps * stride == frames:
        return even_spans(steps, stride)
    if 1 + (steps - 1) * stride == frames:
        return (even_spans(steps, stride) - (stride - 1)).clamp_min(0)
    raise ShapeError(
        f"encoder: {steps} latent steps of {stride} frames hold {steps * stride} frames, or "
        f"{1 + (steps - 1) * stride} with the first frame alone; the video has {frames}"
    )


def audio_spans(samples: int, steps: int, stride: int) -> Tensor:
    """(steps, 2) float64: the samples that each latent step of an audio clip stands for.

    A codec's step i stands for [i stride, (i + 1) stride). A lapped transform (MDCT) has one step more than fit into
    the audio: step i is centered at i stride, and stands for the half stride on both sides.

    Raises:
        ShapeError: the number of steps is neither.
    """
    whole = math.ceil(samples / stride)
    if steps in (samples // stride, whole):
        return even_spans(steps, stride)
    if steps == whole + 1:
        return even_spans(steps, stride) - stride / 2
    raise ShapeError(
        f"encoder: {samples} samples with stride {stride} have {whole} latent steps, or {whole + 1} of a lapped "
        f"transform; the trunk has {steps}"
    )


def even_spans(steps: int, stride: float, width: float | None = None) -> Tensor:
    """(steps, 2) float64: spans that start every `stride` and are `width` long (None: they touch)."""
    starts = torch.arange(steps, dtype=torch.float64) * stride
    return torch.stack([starts, starts + (stride if width is None else width)], dim=1)


def transfer(source: Tensor, target: Tensor) -> Tensor:
    """(t, s) float64 weights, rows of sum 1, that carry features of s source spans to t target spans.

    A target span that covers at least two source spans gets their mean, each weighted by how much of it is covered.
    A shorter one gets the linear interpolation at its center between the centers of the source spans, constant beyond
    the first and the last. So spans that coincide are copied, groups of frames are averaged, and a linear ramp stays
    one wherever it is interpolated.
    """
    overlap = _overlap(source, target)
    covered = (overlap / (source[:, 1] - source[:, 0])).sum(dim=1)  # (t,) in source spans
    mean = overlap / overlap.sum(dim=1, keepdim=True).clamp_min(EPSILON)
    return torch.where((covered >= 2 - EPSILON)[:, None], mean, _interpolation(source.mean(dim=1), target.mean(dim=1)))


def coincide(source: Tensor, target: Tensor) -> bool:
    """Whether every target span is made of whole source spans, so that nothing has to be interpolated."""
    length = source[:, 1] - source[:, 0]
    overlap = _overlap(source, target)
    whole = (overlap < EPSILON * length) | (overlap > (1 - EPSILON) * length)
    filled = (overlap.sum(dim=1) - (target[:, 1] - target[:, 0])).abs() < EPSILON * length.min()
    return bool(whole.all() and filled.all())


def _overlap(source: Tensor, target: Tensor) -> Tensor:
    """(t, s): length of the time that both spans share."""
    start = torch.maximum(target[:, None, 0], source[None, :, 0])
    end = torch.minimum(target[:, None, 1], source[None, :, 1])
    return (end - start).clamp_min(0)


def _interpolation(knots: Tensor, points: Tensor) -> Tensor:
    """(t, s) weights of the piecewise linear function through increasing knots (s,), at points (t,)."""
    points = points.clamp(knots[0], knots[-1])
    above = torch.searchsorted(knots, points).clamp(min(1, len(knots) - 1), len(knots) - 1)
    below = (above - 1).clamp_min(0)
    distance = (knots[above] - knots[below]).clamp_min(EPSILON)  # 0 only where there is one knot
    share = (points - knots[below]) / distance
    rows = torch.arange(len(points))
    weights = torch.zeros(len(points), len(knots), dtype=torch.float64)
    weights[rows, below] = 1 - share
    weights[rows, above] += share
    return weights
