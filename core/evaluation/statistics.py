"""Mean and covariance of features, and the Frechet distance between two such Gaussians (FID, FD-DINOv2, FVD, FAD)."""

from __future__ import annotations

import warnings
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from core.errors import DataError, ShapeError

# A covariance may have eigenvalues this far below 0, relative to its largest, before it is called broken: files of
# other programs often hold covariances that were computed or stored in float32.
NEGATIVE_TOLERANCE = 1e-5


class RankDeficientWarning(UserWarning):
    """A covariance was estimated from too few samples to have full rank."""


class FeatureStatistics:
    """Streaming mean and covariance in float64, on the device of the features.

    Batches are merged by the pairwise rule of Chan, Golub and LeVeque (1979). A sum of x x^T from which n mu mu^T is
    subtracted at the end would lose the digits of the variance where means are large.
    """

    def __init__(self) -> None:
        self._count: int | None = 0
        self._mean: Tensor | None = None  # (D,)
        self._scatter: Tensor | None = None  # (D, D), sum of (x - mean)(x - mean)^T
        self._covariance: Tensor | None = None  # (D, D), of a file that does not tell its count

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any float type.

        Raises:
            ShapeError: another shape, or another D than before.
            DataError: values that are not finite, or statistics that came from a file without a count.
        """
        if features.ndim != 2 or (self._mean is not None and features.shape[1] != len(self._mean)):
            wanted = "(B, D)" if self._mean is None else f"(B, {len(self._mean)})"
            raise ShapeError(f"FeatureStatistics.update: expected {wanted}, got {tuple(features.shape)}")
        if not len(features):
            return
        features = features.detach().double()
        if not features.isfinite().all():
            raise DataError("FeatureStatistics.update: features contain NaN or infinity")
        mean = features.mean(dim=0)
        centerd = features - mean
        self._add(len(features), mean, centerd.T @ centerd)

    def merge(self, other: FeatureStatistics) -> None:
        """Add what another object has seen, as if its features had come here: for several processes."""
        if other._count is None:
            raise DataError("FeatureStatistics.merge: the other statistics came from a file without a count")
        if other._count:
            assert other._mean is not None
            assert other._scatter is not None  # a file that tells its count gives it, too
            self._add(other._count, other._mean, other._scatter)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._count is None:
            raise DataError("FeatureStatistics: loaded from a file without a count, nothing can be added to it")
        if self._count == 0 or self._mean is None or self._scatter is None:
            self._count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        mean, scatter = mean.to(self._mean.device), scatter.to(self._mean.device)
        total = self._count + count
        shift = mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self._count * count / total)
        self._mean += shift * (count / total)
        self._count = total

    @property
    def count(self) -> int | None:
        """Samples seen; None when a file did not tell."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        if self._mean is None:
            raise DataError("FeatureStatistics.mean: no features seen yet")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, divided by count - 1 as numpy.cov and every published FID."""
        if self._covariance is not None:
            return self._covariance
        if self._count is None or self._scatter is None or self._count < 2:
            raise DataError(f"FeatureStatistics.covariance: needs at least 2 samples, has seen {self._count}")
        return self._scatter / (self._count - 1)

    @property
    def rank_deficient(self) -> bool:
        """True where the covariance cannot have full rank: no more samples than features. False when unknown."""
        return self._count is not None and self._mean is not None and self._count <= len(self._mean)

    def save(self, path: str | Path) -> None:
        """Write `mu` and `sigma`, the keys that other programs read, and `count`, to an .npz file."""
        mean, covariance = self.mean.cpu().numpy(), self.covariance.cpu().numpy()
        with open(path, "wb") as file:  # given a name, numpy would append .npz to it
            if self._count is None:
                np.savez(file, mu=mean, sigma=covariance)
            else:
                np.savez(file, mu=mean, sigma=covariance, count=np.int64(self._count))

    @classmethod
    def of(cls, mean: Tensor | np.ndarray, covariance: Tensor | np.ndarray) -> FeatureStatistics:
        """Statistics that were computed elsewhere: mean (D,) and covariance (D, D); nothing can be added to them."""
        found = cls()
        found._count = None
        found._mean, found._covariance = (torch.as_tensor(side).double() for side in (mean, covariance))
        return found

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read `mu` (D,), `sigma` (D, D) and, where it is stored, `count` from an .npz file. Other keys are ignored.

        Raises:
            DataError: the file cannot be read, lacks a key, or its arrays do not fit each other.
        """
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in ("mu", "sigma", "count") if name in file.files}
        except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
            raise DataError(f"{path}: not an .npz file of feature statistics ({error})") from error
        if missing := {"mu", "sigma"} - set(arrays):
            raise DataError(f"{path}: lacks {', '.join(sorted(missing))}; needed are mu (D,) and sigma (D, D)")
        mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; needed are (D,) and (D, D)"
            )
        found = cls.of(mean, covariance)
        if "count" in arrays:
            found._count = int(arrays["count"])
            found._scatter, found._covariance = covariance * (found._count - 1), None
        return found


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^(1/2)): the squared 2-Wasserstein distance of two Gaussians.

    Dowson and Landau (1982); as a metric of generative models Heusel et al. (2017, arXiv 1706.08500), where it is FID
    with Inception features. Tr (A B)^(1/2) is taken as the sum of the singular values of A^(1/2) B^(1/2), with
    symmetric roots: real for every input, and with no square root of a rounding error, unlike the root of the product.

    Eigenvalues below 0 by rounding count as 0. The value is biased upwards with few samples; compare numbers of equal
    sample counts only.

    Warns:
        RankDeficientWarning: a side has no more samples than features.

    Raises:
        ShapeError: the sides have different numbers of features.
        DataError: fewer than 2 samples, values that are not finite, or a matrix that is no covariance.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeError(f"frechet_distance: {len(a.mean)} features on one side, {len(b.mean)} on the other")
    device = a.mean.device
    root_a, trace_a = _root(a.covariance)
    root_b, trace_b = _root(b.covariance)
    shift = (a.mean - b.mean.to(device)).square().sum()
    overlap = torch.linalg.svdvals(root_a @ root_b.to(device)).sum()
    distance = float(shift + trace_a + trace_b.to(device) - 2 * overlap)
    if not np.isfinite(distance):
        raise DataError("frechet_distance: means or covariances contain NaN or infinity")
    for name, side in (("first", a), ("second", b)):
        if side.rank_deficient:
            warnings.warn(
                f"frechet_distance: the {name} side has {side.count} samples for {len(side.mean)} features; its "
                f"covariance lacks full rank and the distance is far too uncertain to compare models by",
                RankDeficientWarning,
                stacklevel=2,
            )
    return max(distance, 0.0)  # equal sides differ from 0 by rounding alone


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root (D, D) and trace, after eigenvalues below 0 are set to 0."""
    if not covariance.isfinite().all():
        raise DataError("frechet_distance: a covariance contains NaN or infinity")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -NEGATIVE_TOLERANCE * values[-1].abs():
        raise DataError(
            f"frechet_distance: a covariance has the eigenvalue {values[0]:.3g} beside its largest, {values[-1]:.3g}; "
            f"none may be below 0"
        )
    values = values.clamp(min=0)
    return (vectors * values.sqrt()) @ vectors.T, values.sum()
