"""A sample file against a reference, by the definitions of the ADM evaluator (guided-diffusion, evaluations/).

    FID, sFID            samples against the statistics in the reference, or those of its images where it has none
    IS                   mean over consecutive runs of 5,000 samples, the last one short
    precision, recall    k = 3, against the images in the reference

What the files do not allow is known before the first image, and left out. The evaluator rounds features to half
precision for precision and recall; here they stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from core.evaluation.inception_score import inception_score_of_runs
from core.evaluation.manifold import precision_recall
from core.evaluation.statistics import FeatureStatistics
from modalities.evaluation.adm import Reference, read_reference
from modalities.evaluation.attempts import Measured
from modalities.evaluation.image_files import Images, is_npz
from modalities.evaluation.networks.inception import Inception
from modalities.evaluation.samples import frechet

NEIGHBORS = 3


@dataclass(frozen=True)
class Comparison:
    """Samples, what they are compared with, and what these files do not allow.

    Attributes:
        known: statistics that the reference holds.
        real: its images, None where it has none.
        left_out: measure -> why.
    """

    samples: Images
    known: Reference
    real: Images | None
    left_out: dict[str, str]

    @property
    def notes(self) -> list[str]:
        return [f"{name} is left out: {why}" for name, why in self.left_out.items()]


def open_comparison(samples: Path, reference: Path) -> Comparison:
    """
    Args:
        samples: images as `Images` takes them.
        reference: the same, or an .npz with mu, sigma, mu_s, sigma_s (or the first two alone), mostly with `arr_0` too.

    Raises DataError, ConfigError for other files.
    """
    known = read_reference(reference) if is_npz(reference) else Reference()
    made = Images(samples)
    real = Images(reference) if known.samples or not is_npz(reference) else None
    left_out, few = {}, f"{len(made)} samples" if len(made) < 2 else ""
    if not few and known.mu is None and real is not None and len(real) < 2:
        few = f"{len(real)} images in the reference"
    if few:
        left_out |= dict.fromkeys(("FID", "sFID"), f"{few}; a covariance needs at least 2")
    elif known.mu is not None and known.mu_s is None:
        left_out["sFID"] = "the reference holds mu and sigma, and no mu_s and sigma_s"
    if real is None:
        left_out["precision, recall"] = "the reference holds no images to compare with"
    elif (least := min(len(real), len(made))) <= NEIGHBORS:
        left_out["precision, recall"] = f"{least} images on a side; more than {NEIGHBORS} are needed"
    return Comparison(made, known, real, left_out)


@dataclass
class _Seen:
    """What the network made of images: rows (N, 2048) and class probabilities (N, 1008) on the CPU."""

    pool: FeatureStatistics = field(default_factory=FeatureStatistics)
    spatial: FeatureStatistics = field(default_factory=FeatureStatistics)
    rows: list[Tensor] = field(default_factory=list)
    chances: list[Tensor] = field(default_factory=list)


def measure_samples(
    files: Comparison, inception: str, device: torch.device, progress: Callable[[int], object] | None = None
) -> Measured:
    """
    Args:
        inception: weights of the standard Inception.
        progress: called with the number of images that went through the network.

    Raises CheckpointError for other weights, DataError for files that are cut off.
    """
    network = Inception(inception).to(device)
    made = _look(files.samples, network, progress)
    real = None if files.real is None else _look(files.real, network, progress)
    known, found = files.known, Measured(warnings=list(files.notes))
    for name, ours, theirs, mean, covariance in (
        ("FID", made.pool, real and real.pool, known.mu, known.sigma),
        ("sFID", made.spatial, real and real.spatial, known.mu_s, known.sigma_s),
    ):
        if name not in files.left_out:
            side = theirs if mean is None or covariance is None else FeatureStatistics.of(mean, covariance)
            found.attempt(name, partial(_frechet, name, side, ours, found.warnings))
    found.attempt("IS", lambda: {"IS": inception_score_of_runs(torch.cat(made.chances)).mean})
    if "precision, recall" not in files.left_out and real is not None:
        found.attempt("precision, recall", partial(_spread, real, made, device))
    for side in (files.samples, files.real):
        found.warnings += side.warnings() if side is not None else []
    if files.real is not None and files.real.sizes != files.samples.sizes:
        found.warnings.append(
            f"samples of {_sizes(files.samples)} are compared with images of {_sizes(files.real)}: both are "
            "resized for the network, and the sizes alone move FID"
        )
    return found


def _look(images: Images, network: Inception, progress: Callable[[int], object] | None) -> _Seen:
    seen = _Seen()
    for media in images.batches():
        features = network(media)
        assert features.spatial is not None  # Inception has all three
        assert features.logits is not None
        seen.pool.update(features.pool)
        seen.spatial.update(features.spatial)
        seen.rows.append(features.pool.cpu())
        seen.chances.append(features.logits.softmax(1).cpu())
        if progress:
            progress(len(media))
    return seen


def _frechet(
    name: str, real: FeatureStatistics | None, made: FeatureStatistics, warnings: list[str]
) -> dict[str, float]:
    assert real is not None  # `left_out` names what there is no reference for
    value, lines = frechet(name, real, made)
    warnings += lines
    return {name: value}


def _spread(real: _Seen, made: _Seen, device: torch.device) -> dict[str, float]:
    theirs, ours = (torch.cat(side.rows).to(device) if side.rows else torch.zeros(0, 2048) for side in (real, made))
    return precision_recall(theirs, ours, NEIGHBORS)._asdict()


def _sizes(images: Images) -> str:
    found = sorted(images.sizes)
    return " and ".join(f"{h} x {w}" for h, w in found) + " pixels" if len(found) < 3 else f"{len(found)} sizes"
