"""Inception score: its two ends, another implementation, and the order of samples."""

import math

import numpy as np
import pytest
import torch

from core.errors import DataError, ShapeError
from core.evaluation.inception_score import inception_score, inception_score_of_runs


def logits(seed=0):
    return 2 * torch.randn(120, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_ends_of_the_range():
    sure_and_varied = torch.eye(5).repeat(20, 1)  # zeros in it: 0 log 0 is 0
    assert inception_score(sure_and_varied, splits=4) == pytest.approx((5.0, 0.0))
    assert inception_score(torch.full((40, 5), 0.2)) == pytest.approx((1.0, 0.0))
    assert inception_score(torch.eye(5)[:1].repeat(40, 1)) == pytest.approx((1.0, 0.0))


def test_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    divergence = (
        0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4) + 0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4)
    )
    assert inception_score(p, splits=1).mean == pytest.approx(math.exp(divergence / 2), rel=1e-12)


def test_against_torchmetrics():
    """One split, since that implementation shuffles by the global generator; its deviation divides by splits - 1."""
    module = pytest.importorskip("torchmetrics.image.inception", reason="torchmetrics is not installed")
    metric = module.InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(logits())
    with pytest.warns(UserWarning, match="degrees of freedom"):
        expected = float(metric.compute()[0])
    assert inception_score(logits().softmax(1), splits=1).mean == pytest.approx(expected, rel=1e-12)


def test_splits_are_consecutive_and_cover_all_samples():
    p = logits().softmax(1)
    parts = [inception_score(p[a:b], splits=1).mean for a, b in ((0, 17), (17, 34), (34, 51), (51, 68), (68, 85))]
    parts += [inception_score(p[a:b], splits=1).mean for a, b in ((85, 102), (102, 120))]
    found = inception_score(p, splits=7)
    mean = sum(parts) / 7
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in parts) / 7), rel=1e-9)


def as_adm(p: np.ndarray, length: int) -> float:
    """Written from the evaluator's description: runs of `length`, the last one short, a plain mean of their scores."""
    scores, start = [], 0
    while start < len(p):
        run = p[start : start + length]
        entropy_of_mean = -(run.mean(0) * np.log(run.mean(0))).sum()
        mean_entropy = -(run * np.log(run)).sum(1).mean()
        scores.append(np.exp(entropy_of_mean - mean_entropy))  # mean KL to the marginal, the other way round
        start += length
    return float(np.mean(scores))


@pytest.mark.parametrize("length", [1, 17, 40, 119, 120, 121, 5000])
def test_runs_are_those_of_the_adm_evaluator(length):
    p = logits().softmax(1)
    assert inception_score_of_runs(p, length).mean == pytest.approx(as_adm(p.numpy(), length), rel=1e-9)
    if 120 % length == 0:
        assert inception_score_of_runs(p, length) == pytest.approx(inception_score(p, 120 // length), rel=1e-12)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(4999, [10]), (5000, [10]), (7000, [10, 4]), (10_000, [10, 10]), (12_500, [10, 10, 5])],
)
def test_a_short_last_run_counts_as_much_as_the_others(samples, expected):
    """Sure of one class each; a whole run has 10 of them, the short one of 2,000 has 4, that of 2,500 has 5."""
    classes = (torch.arange(samples) % 5000) // 500
    assert inception_score_of_runs(torch.eye(10)[classes]).mean == pytest.approx(
        sum(expected) / len(expected), rel=1e-3
    )


def test_mistakes_are_named():
    with pytest.raises(DataError, match="look like logits"):
        inception_score(logits())
    with pytest.raises(DataError, match="look like logits"):
        inception_score(torch.full((10, 2), torch.nan), splits=2)
    with pytest.raises(DataError, match="10 splits of 4 samples"):
        inception_score(torch.full((4, 2), 0.5))
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        inception_score(torch.zeros(4))
    with pytest.raises(DataError, match="runs of 5000 of 0 samples"):
        inception_score_of_runs(torch.zeros(0, 3))
