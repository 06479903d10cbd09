"""Signs of trouble in representation learning, as numbers.

The known failures: norms that grow (paper Fig. 11, l1 instead of cosine), an alignment that is near 1 early and then
flat, features that no longer differ between tokens or samples (oversmoothing, collapse), and a student that agrees with
the teacher only where both see the same noise level.

All numbers are sums in float64 until they are asked for, so batches of any size give the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import DataError, ShapeError


@dataclass
class _Sums:
    """Over tokens: their features and unit features (D,), and features^T features (D, D)."""

    features: Tensor
    directions: Tensor
    gram: Tensor


class LayerHealth:
    """Numbers about the features of one layer; means are over the tokens of the loss masks of all batches.

    norm: mean length of a feature.
    effective_rank: see `effective_rank`, over all tokens of the loss masks; 1 is collapse, D the most.
    token_cosine: mean cosine of two different tokens of a sample; near 1 is oversmoothing. Left out where no sample
        has two tokens.
    mean_cosine: mean cosine of a token with the mean feature; near 1 is collapse.
    """

    def __init__(self) -> None:
        self._tokens = self._samples = 0  # loss_mask tokens, samples with two of them
        self._norms = self._pairs = 0.0
        self._sums: _Sums | None = None

    @torch.no_grad()
    def update(self, features: Tensor, loss_mask: Tensor) -> None:
        """Add features (B, L, D) of any float type; loss_mask (B, L) bool. Raises ShapeError."""
        _check("LayerHealth", loss_mask, features=features)
        features = features.float()
        unit = F.normalize(features, dim=-1).double() * loss_mask[..., None]  # (B, L, D)
        count = loss_mask.sum(dim=1)  # (B,)
        # Of distinct pairs of a sample: (|sum u|^2 - sum |u|^2) / (n (n - 1)) of unit features u.
        pairs = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))
        several = count > 1
        self._pairs += float((pairs[several] / (count * (count - 1))[several]).sum())
        self._samples += int(several.sum())

        tokens = features[loss_mask].double()  # (n, D)
        if self._sums is None:
            width = tokens.shape[1]
            self._sums = _Sums(tokens.new_zeros(width), tokens.new_zeros(width), tokens.new_zeros(width, width))
        self._tokens += len(tokens)
        self._norms += float(tokens.norm(dim=1).sum())
        self._sums.features += tokens.sum(dim=0)
        self._sums.directions += unit.sum(dim=(0, 1))
        self._sums.gram += tokens.T @ tokens

    def result(self) -> dict[str, float]:
        """Raises DataError when no token was in a loss mask."""
        if self._sums is None or not self._tokens:
            raise DataError("LayerHealth: no token in the loss mask")
        found = {"norm": self._norms / self._tokens, "effective_rank": effective_rank(self._sums.gram)}
        if self._samples:
            found["token_cosine"] = self._pairs / self._samples
        # The mean of u . c over tokens is the mean of u, times c: the center need not be known in advance.
        center = F.normalize(self._sums.features, dim=0)
        found["mean_cosine"] = float(self._sums.directions @ center) / self._tokens
        return found


class PairHealth:
    """What the student predicts against what the teacher gives, over the tokens of the loss masks of all batches.

    cosine: mean cosine of the two.
    cosine_noisier, cosine_same: the same where the student's token is noisier than the teacher's, and where both see
        one level; left out where there are no such tokens.
    share_noisier: share of the tokens of the first kind.
    norm_student, norm_teacher: mean lengths.
    level_student, level_teacher: mean noise levels.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def update(
        self, prediction: Tensor, target: Tensor, loss_mask: Tensor, student_levels: Tensor, teacher_levels: Tensor
    ) -> None:
        """Add projected student and teacher features (B, L, D); loss_mask and levels (B, L). Raises ShapeError."""
        _check("PairHealth", loss_mask, prediction=prediction, target=target)
        for levels in (student_levels, teacher_levels):
            if levels.shape != loss_mask.shape:
                raise ShapeError(f"PairHealth: levels: expected {tuple(loss_mask.shape)}, got {tuple(levels.shape)}")
        prediction, target = prediction[loss_mask].float(), target[loss_mask].float()  # (n, D)
        student, teacher = student_levels[loss_mask], teacher_levels[loss_mask]
        cosine, noisier, same = F.cosine_similarity(prediction, target, dim=1), student > teacher, student == teacher
        for name, values in {
            "cosine": cosine,
            "cosine_noisier": cosine[noisier],
            "cosine_same": cosine[same],
            "share_noisier": noisier,
            "norm_student": prediction.norm(dim=1),
            "norm_teacher": target.norm(dim=1),
            "level_student": student,
            "level_teacher": teacher,
        }.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
            self._counts[name] = self._counts.get(name, 0) + len(values)

    def result(self) -> dict[str, float]:
        """Raises DataError when no token was in a loss mask."""
        if not self._counts.get("cosine"):
            raise DataError("PairHealth: no token in the loss mask")
        return {name: total / self._counts[name] for name, total in self._sums.items() if self._counts[name]}


def effective_rank(gram: Tensor) -> float:
    """exp of the entropy of the singular values of rows (n, D), normalized to sum 1; between 1 and min(n, D).

    Roy and Vetterli (2007); as a sign of collapse Garrido et al. (2023, arXiv 2210.02885). Rows are not centered, as in
    both. All rows being 0 gives 0.

    Args:
        gram: rows^T rows (D, D) float64, which gives singular values exact to about 1e-8 of the largest.
    """
    values = torch.linalg.eigvalsh(gram)
    # What lies below rounding of the Gram matrix is 0, or its root would be taken for a small singular value.
    floor = values.max() * len(gram) * torch.finfo(torch.float64).eps
    singular = torch.where(values > floor, values, 0.0).sqrt()
    if not singular.sum() > 0:
        return 0.0
    share = singular / singular.sum()
    return float((-torch.xlogy(share, share).sum()).exp())


def _check(owner: str, loss_mask: Tensor, **features: Tensor) -> None:
    if loss_mask.ndim != 2 or loss_mask.dtype != torch.bool:
        raise ShapeError(f"{owner}: loss_mask: expected (B, L) bool, got {tuple(loss_mask.shape)} {loss_mask.dtype}")
    for name, values in features.items():
        if values.ndim != 3 or values.shape[:2] != loss_mask.shape:
            raise ShapeError(f"{owner}: {name}: expected {(*loss_mask.shape, 'D')}, got {tuple(values.shape)}")
