"""Inception score: how sure a classifier is of single samples, and how varied it finds all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import DataError, ShapeError


class InceptionScore(NamedTuple):
    """Mean over the splits, and their standard deviation."""

    mean: float
    std: float


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y | x) || p(y))), averaged over splits of the samples (Salimans et al. 2016, arXiv 1606.03498, 4).

    The score lies in [1, classes] and grows with the size of a split: report it for equal numbers only. Splits are
    consecutive and of equal size up to one, as in the authors' code, with its deviation (divided by the number of
    splits); samples must therefore come in an order that has nothing to do with their class.

    Args:
        probabilities: (N, classes), rows summing to 1.

    Raises:
        ShapeError: another shape.
        DataError: fewer samples than splits, or rows that are no probabilities.
    """
    p = _checked(probabilities)
    samples = len(p)
    if not 1 <= splits <= samples:
        raise DataError(f"inception_score: {splits} splits of {samples} samples; needed are 1 to {samples}")
    return _averaged([p[i * samples // splits : (i + 1) * samples // splits] for i in range(splits)])


def inception_score_of_runs(probabilities: Tensor, length: int = 5000) -> InceptionScore:
    """The score as the ADM evaluator (openai/guided-diffusion) averages it: over consecutive runs of `length` samples.

    The last run is as short as what is left, and counts as much as the others. Equal to `inception_score` with
    N / length splits where that is a whole number, and with one split below `length`. Arguments and errors as there.
    """
    p = _checked(probabilities)
    if length < 1 or not len(p):
        raise DataError(f"inception_score: runs of {length} of {len(p)} samples; both must be at least 1")
    return _averaged(p.split(length))


def _checked(probabilities: Tensor) -> Tensor:
    if probabilities.ndim != 2:
        raise ShapeError(f"inception_score: expected (N, classes), got {tuple(probabilities.shape)}")
    p = probabilities.double()
    if len(p) and not ((p >= 0).all() and (p.sum(dim=1) - 1).abs().max() < 1e-3):
        raise DataError("inception_score: rows must be probabilities that sum to 1; these look like logits")
    return p


def _averaged(parts: Sequence[Tensor]) -> InceptionScore:
    scores = []
    for part in parts:
        marginal = part.mean(dim=0)
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(dim=1)  # KL of each sample
        scores.append(divergence.mean().exp())
    scores = torch.stack(scores)
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))
