"""A sample file against a reference batch, by the definitions of the ADM evaluator (guided-diffusion, evaluations/).

    FID, sFID            samples against the statistics in the reference
    IS                   mean over consecutive parts of 5,000 samples
    precision, recall    k = 3, against the pictures in the reference, where it holds some

The evaluator rounds features to half precision for precision and recall; here they stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from core.evaluation.inception_score import inception_score
from core.evaluation.manifold import precision_recall
from core.evaluation.statistics import FeatureStatistics
from modalities.evaluation.measure import Measured
from modalities.evaluation.samples import frechet
from modalities.metrics.adm import read_reference, read_samples
from modalities.metrics.inception import Inception

IS_PART = 5000
NEIGHBOURS = 3


def measure_samples(
    samples: Path,
    reference: Path,
    inception: str,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """
    Args:
        samples: .npz with `arr_0`.
        reference: .npz with mu, sigma, mu_s, sigma_s, and mostly `arr_0`.
        inception: weights of the standard Inception.
        progress: called with the number of pictures that went through the network.

    Raises DataError for other files, CheckpointError for other weights.
    """
    known, network = read_reference(reference), Inception(inception).to(device)
    pool, spatial = FeatureStatistics(), FeatureStatistics()
    rows, chances = [], []
    for pictures in read_samples(samples):
        features = network(pictures)
        pool.update(features.pool)
        spatial.update(features.spatial)
        rows.append(features.pool.cpu())
        chances.append(features.logits.softmax(1).cpu())
        if progress:
            progress(len(pictures))
    values, warnings = {}, []
    for name, ours, mean, covariance in (
        ("FID", pool, known.mu, known.sigma),
        ("sFID", spatial, known.mu_s, known.sigma_s),
    ):
        values[name], lines = frechet(name, FeatureStatistics.of(mean, covariance), ours)
        warnings += lines
    made, probabilities = torch.cat(rows), torch.cat(chances)
    values["IS"] = inception_score(probabilities, splits=max(1, len(probabilities) // IS_PART)).mean
    if min(known.samples, len(made)) > NEIGHBOURS:
        real = torch.cat([network(pictures).pool.cpu() for pictures in read_samples(reference)])
        values |= precision_recall(real.to(device), made.to(device), NEIGHBOURS)._asdict()
    else:
        warnings.append("precision, recall: left out, the reference holds no pictures to compare with")
    return Measured(values, warnings)
