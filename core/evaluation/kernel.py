"""Kernel distance (KID): unbiased, so it is meaningful where samples are too few for a Frechet distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import DataError, ShapeError
from core.keys import generator


class KernelDistance(NamedTuple):
    """Mean over the subsets, and their standard deviation (not the error of the mean)."""

    mean: float
    std: float


def squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (M, D) and (N, D); it may be below 0.

    Gretton et al. (2012), Eq. 3, with the cubic kernel (x.y / D + 1)^3 of Binkowski et al. (2018, arXiv 1801.01401).
    """
    _check(a, b, least=2)
    a, b = a.double(), b.double().to(a.device)
    return float(_within(a) + _within(b) - 2 * _kernel(a, b).mean())


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KernelDistance:
    """KID of features (M, D) and (N, D): mean and deviation of `squared_mmd` over random subsets of both.

    Binkowski et al. (2018) and their code: 100 subsets of 1000, each drawn without replacement. Subsets depend on the
    seed and the numbers of samples alone.

    Raises:
        ShapeError: not (samples, features) with equal numbers of features.
        DataError: a side has fewer than `subset_size` samples.
    """
    _check(a, b, least=subset_size)
    values = []
    for subset in range(subsets):
        rows = [
            torch.randperm(len(side), generator=generator(seed, "kernel_distance", subset, name))[:subset_size]
            for name, side in (("a", a), ("b", b))
        ]
        values.append(squared_mmd(a[rows[0].to(a.device)], b[rows[1].to(b.device)]))
    values = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _within(a: Tensor) -> Tensor:
    """Mean kernel over the pairs of distinct samples of (N, D)."""
    kernel = _kernel(a, a)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1))


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(f"kernel distance: expected (M, D) and (N, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if least < 2 or min(len(a), len(b)) < least:
        raise DataError(
            f"kernel distance: {len(a)} and {len(b)} samples, subsets of {least}; "
            f"a subset needs at least 2 samples and at most as many as there are"
        )
