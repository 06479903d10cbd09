"""Health numbers on features whose state is known, and against slow loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from core.errors import DataError, ShapeError
from core.evaluation.health import effective_rank, feature_health

B, L, D = 3, 5, 8


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_counted():
    counted = torch.ones(B, L, dtype=torch.bool)
    counted[0, 3:] = False
    counted[1, 1:] = False  # a sample with one token has no pairs
    return counted


def test_against_loops_over_tokens():
    features, counted = drawn(B, L, D), some_counted()
    found = feature_health({"layer_3": features}, counted)
    tokens = [features[i, j] for i in range(B) for j in range(L) if counted[i, j]]
    centre = sum(tokens) / len(tokens)
    assert found["norm/layer_3"] == pytest.approx(float(sum(t.norm() for t in tokens)) / len(tokens), rel=1e-6)
    expected = float(sum(F.cosine_similarity(t, centre, dim=0) for t in tokens)) / len(tokens)
    assert found["mean_cosine/layer_3"] == pytest.approx(expected, rel=1e-5)
    per_sample = []
    for i in (0, 2):
        rows = features[i][counted[i]]
        pairs = [F.cosine_similarity(a, b, dim=0) for p, a in enumerate(rows) for q, b in enumerate(rows) if p != q]
        per_sample.append(float(sum(pairs)) / len(pairs))
    assert found["token_cosine/layer_3"] == pytest.approx(sum(per_sample) / 2, rel=1e-5)
    assert set(found) == {f"{name}/layer_3" for name in ("norm", "effective_rank", "token_cosine", "mean_cosine")}


def test_uncounted_tokens_do_not_matter():
    features, counted = drawn(B, L, D), some_counted()
    other = torch.where(counted[..., None], features, 1e4)
    assert feature_health({"a": other}, counted, (other, 2 * other)) == feature_health(
        {"a": features}, counted, (features, 2 * features)
    )


def test_effective_rank_in_closed_form():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.outer(drawn(50), drawn(20, seed=1))) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(4, 3)) == 0
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    left = torch.linalg.qr(drawn(30, 4).double()).Q
    right = torch.linalg.qr(drawn(9, 4, seed=1).double()).Q
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125))
    for rows in (left * values @ right.T, right * values @ left.T):
        assert effective_rank(rows) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_collapse_and_oversmoothing_show():
    counted = torch.ones(B, L, dtype=torch.bool)
    collapsed = drawn(1, 1, D).expand(B, L, D)
    smooth = drawn(B, 1, D).expand(B, L, D)
    healthy = drawn(B, L, D)
    found = feature_health({"collapsed": collapsed, "smooth": smooth, "healthy": healthy}, counted)
    assert found["token_cosine/collapsed"] == pytest.approx(1, abs=1e-6)
    assert found["mean_cosine/collapsed"] == pytest.approx(1, abs=1e-6)
    assert found["effective_rank/collapsed"] == pytest.approx(1, abs=1e-3)
    assert found["token_cosine/smooth"] == pytest.approx(1, abs=1e-6)
    assert found["mean_cosine/smooth"] < 0.9
    assert found["effective_rank/smooth"] < B + 1e-3
    assert abs(found["token_cosine/healthy"]) < 0.3
    assert found["effective_rank/healthy"] > 5


def test_cosine_of_the_pair_split_by_noise_level():
    """Tokens at the teacher's level agree, noisier ones are opposite, one token is not counted."""
    target = drawn(1, 4, D)
    prediction = target * torch.tensor([3.0, -1.0, -2.0, 1.0])[None, :, None]
    counted = torch.tensor([[True, True, True, False]])
    levels = torch.tensor([[0.2, 0.7, 0.7, 0.7]]), torch.full((1, 4), 0.2)
    found = feature_health({}, counted, (prediction, target), levels)
    assert found == pytest.approx(
        {"cosine": -1 / 3, "cosine_same": 1.0, "cosine_noisier": -1.0, "share_noisier": 2 / 3}, abs=1e-6
    )
    same = feature_health({}, counted, (prediction, target), (levels[1], levels[1]))
    assert same == pytest.approx({"cosine": -1 / 3, "cosine_same": -1 / 3, "share_noisier": 0.0}, abs=1e-6)


def test_half_precision_features_of_large_norm_do_not_overflow():
    features = (20_000 * drawn(B, L, D)).clamp(-60_000, 60_000).half()
    wide, counted = features.float(), torch.ones(B, L, dtype=torch.bool)
    assert wide.norm(dim=-1).max() > torch.finfo(torch.float16).max > wide.abs().max()
    expected = feature_health({"a": wide}, counted, (wide, wide))
    assert feature_health({"a": features}, counted, (features, features)) == pytest.approx(expected, rel=1e-12)
    assert expected["cosine"] == pytest.approx(1, abs=1e-6)


def test_mistakes_are_named():
    features, counted = drawn(B, L, D), some_counted()
    with pytest.raises(ShapeError, match=r"pair: expected \(3, 5, 'D'\), got \(3, 4, 8\)"):
        feature_health({}, counted, (features, features[:, :4]))
    with pytest.raises(ShapeError, match="bool"):
        feature_health({"a": features}, counted.float())
    with pytest.raises(DataError, match="no counted token"):
        feature_health({"a": features}, torch.zeros(B, L, dtype=torch.bool))
    with pytest.raises(DataError, match="give the pair too"):
        feature_health({"a": features}, counted, levels=(counted.float(), counted.float()))
    with pytest.raises(ShapeError, match=r"levels: expected \(3, 5\)"):
        feature_health({}, counted, (features, features), (torch.zeros(B, 1), torch.zeros(B, 1)))
