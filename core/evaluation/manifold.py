"""Fidelity and coverage apart: precision and recall, density and coverage, from nearest neighbors in feature space.

A ball around a sample reaches to its k-th nearest neighbor among the samples of its own set, itself not counted. Balls
are closed, as Kynkaanniemi et al. define them; the reference code of Naeem et al. takes open ones, which differs only
where distances are equal (duplicated samples).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import DataError, ShapeError

CHUNK = 2048  # rows of a distance matrix that exist at a time: 50k float64 columns of them take 0.8 GB


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, chunk: int = CHUNK) -> PrecisionRecall:
    """Improved precision and recall of Kynkaanniemi et al. (2019, arXiv 1904.06991, Eq. 1-2), k = 3 as theirs.

    Precision: share of generated samples inside any ball around a real one. Recall: the same with the sets exchanged.

    Args:
        real, generated: features (M, D) and (N, D).
        chunk: rows of a distance matrix that exist at a time; the result does not depend on it.

    Raises:
        ShapeError: not (samples, features) with equal numbers of features.
        DataError: a set has no more than k samples.
    """
    real, generated = _prepare(real, generated, k)
    real_radius, generated_radius = _radii(real, k, chunk), _radii(generated, k, chunk)
    precise = torch.cat([(d <= real_radius).any(dim=1) for _, d in _distances(generated, real, chunk)])
    recalled = torch.cat([(d <= generated_radius).any(dim=1) for _, d in _distances(real, generated, chunk)])
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))


def density_coverage(real: Tensor, generated: Tensor, k: int = 5, chunk: int = CHUNK) -> DensityCoverage:
    """Density and coverage of Naeem et al. (2020, arXiv 2002.09797, Eq. 4-5), k = 5 as theirs.

    Density: mean number of balls around real samples that a generated one lies in, over k; it may exceed 1. Coverage:
    share of the real samples with a generated one in their ball. Arguments and errors are those of `precision_recall`.
    """
    real, generated = _prepare(real, generated, k)
    radius = _radii(real, k, chunk)
    inside, covered = 0, 0
    for rows, distance in _distances(real, generated, chunk):
        hits = distance <= radius[rows, None]  # (chunk, N)
        inside += int(hits.sum())
        covered += int(hits.any(dim=1).sum())
    return DensityCoverage(inside / (k * len(generated)), covered / len(real))


def _prepare(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Float64 and moved by the mean of the real features, so that large means cost no digits of a distance."""
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ShapeError(
            f"real and generated features: expected (M, D) and (N, D), "
            f"got {tuple(real.shape)} and {tuple(generated.shape)}"
        )
    if k < 1 or min(len(real), len(generated)) <= k:
        raise DataError(f"{len(real)} real and {len(generated)} generated samples, k = {k}; both must exceed k >= 1")
    real, generated = real.double(), generated.double().to(real.device)
    center = real.mean(dim=0)
    return real - center, generated - center


def _radii(points: Tensor, k: int, chunk: int) -> Tensor:
    """(M,) squared distance of every point to its k-th nearest other one."""
    parts = []
    for rows, distance in _distances(points, points, chunk):
        itself = torch.arange(len(distance), device=points.device)
        distance[itself, itself + rows.start] = torch.inf
        parts.append(distance.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(parts)


def _distances(a: Tensor, b: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows of a, their squared distances (rows, N) to all of b), chunk by chunk."""
    norm = b.square().sum(dim=1)
    for start in range(0, len(a), chunk):
        part = a[start : start + chunk]
        distance = part.square().sum(dim=1, keepdim=True) + norm - 2 * part @ b.T
        yield slice(start, start + len(part)), distance.clamp_(min=0)
