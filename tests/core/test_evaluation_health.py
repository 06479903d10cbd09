"""Health numbers on features whose state is known, and against slow loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from core.errors import DataError, ShapeError
from core.evaluation.health import LayerHealth, PairHealth, effective_rank

B, L, D = 3, 5, 8


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_in_loss():
    loss_mask = torch.ones(B, L, dtype=torch.bool)
    loss_mask[0, 3:] = False
    loss_mask[1, 1:] = False  # a sample with one token has no pairs
    return loss_mask


def layer(*parts):
    health = LayerHealth()
    for features, loss_mask in parts:
        health.update(features, loss_mask)
    return health.result()


def pair(*parts):
    health = PairHealth()
    for part in parts:
        health.update(*part)
    return health.result()


def test_a_layer_against_loops_over_tokens():
    features, loss_mask = drawn(B, L, D), some_in_loss()
    found = layer((features, loss_mask))
    tokens = [features[i, j] for i in range(B) for j in range(L) if loss_mask[i, j]]
    center = sum(tokens) / len(tokens)
    assert found["norm"] == pytest.approx(float(sum(t.norm() for t in tokens)) / len(tokens), rel=1e-6)
    expected = float(sum(F.cosine_similarity(t, center, dim=0) for t in tokens)) / len(tokens)
    assert found["mean_cosine"] == pytest.approx(expected, rel=1e-5)
    per_sample = []
    for i in (0, 2):
        rows = features[i][loss_mask[i]]
        pairs = [F.cosine_similarity(a, b, dim=0) for p, a in enumerate(rows) for q, b in enumerate(rows) if p != q]
        per_sample.append(float(sum(pairs)) / len(pairs))
    assert found["token_cosine"] == pytest.approx(sum(per_sample) / 2, rel=1e-5)
    rows = features[loss_mask].double()
    assert found["effective_rank"] == pytest.approx(effective_rank(rows.T @ rows), rel=1e-9)
    assert set(found) == {"norm", "effective_rank", "token_cosine", "mean_cosine"}


def test_batches_of_any_size_give_the_same_numbers():
    features, loss_mask = drawn(B, L, D), some_in_loss()
    other, levels = drawn(B, L, D, seed=1), drawn(B, L, seed=2).round()
    alone = [(features[i : i + 1], loss_mask[i : i + 1]) for i in range(B)]
    assert layer(*alone) == pytest.approx(layer((features, loss_mask)), rel=1e-12)
    whole = (features, other, loss_mask, levels, levels.relu())
    assert pair(*(tuple(side[i : i + 1] for side in whole) for i in range(B))) == pytest.approx(pair(whole), rel=1e-12)


def test_uncounted_tokens_do_not_matter():
    features, loss_mask = drawn(B, L, D), some_in_loss()
    other, levels = torch.where(loss_mask[..., None], features, 1e4), drawn(B, L)
    assert layer((other, loss_mask)) == layer((features, loss_mask))
    elsewhere = torch.where(loss_mask, levels, 7.0)
    expected = pair((features, 2 * features, loss_mask, levels, levels))
    assert pair((other, 2 * other, loss_mask, elsewhere, levels)) == expected


def test_effective_rank_in_closed_form():
    def rank(rows):
        return effective_rank(rows.double().T @ rows.double())

    assert rank(torch.eye(6)) == pytest.approx(6)
    assert rank(torch.outer(drawn(50), drawn(20, seed=1))) == pytest.approx(1, abs=1e-3)
    assert rank(torch.zeros(4, 3)) == 0
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    left = torch.linalg.qr(drawn(30, 4).double()).Q
    right = torch.linalg.qr(drawn(9, 4, seed=1).double()).Q
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125))
    for rows in (left * values @ right.T, right * values @ left.T):
        assert rank(rows) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_collapse_and_oversmoothing_show():
    loss_mask = torch.ones(B, L, dtype=torch.bool)
    collapsed = layer((drawn(1, 1, D).expand(B, L, D), loss_mask))
    smooth = layer((drawn(B, 1, D).expand(B, L, D), loss_mask))
    healthy = layer((drawn(B, L, D), loss_mask))
    assert collapsed["token_cosine"] == pytest.approx(1, abs=1e-6)
    assert collapsed["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert collapsed["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert smooth["token_cosine"] == pytest.approx(1, abs=1e-6)
    assert smooth["mean_cosine"] < 0.9
    assert smooth["effective_rank"] < B + 1e-3
    assert abs(healthy["token_cosine"]) < 0.3
    assert healthy["effective_rank"] > 5


def test_cosine_of_the_pair_split_by_noise_level():
    """Tokens at the teacher's level agree, noisier ones are opposite, one token is not counted."""
    target = F.normalize(drawn(1, 4, D), dim=-1)
    prediction = target * torch.tensor([3.0, -1.0, -2.0, 1.0])[None, :, None]
    loss_mask = torch.tensor([[True, True, True, False]])
    levels = torch.tensor([[0.2, 0.7, 0.7, 0.7]]), torch.full((1, 4), 0.2)
    found = pair((prediction, target, loss_mask, *levels))
    assert found == pytest.approx(
        {
            "cosine": -1 / 3,
            "cosine_same": 1.0,
            "cosine_noisier": -1.0,
            "share_noisier": 2 / 3,
            "norm_student": 2.0,
            "norm_teacher": 1.0,
            "level_student": 1.6 / 3,
            "level_teacher": 0.2,
        },
        abs=1e-6,
    )
    same = pair((prediction, target, loss_mask, levels[1], levels[1]))
    assert same["cosine_same"] == same["cosine"] == pytest.approx(-1 / 3)
    assert same["share_noisier"] == 0
    assert "cosine_noisier" not in same


def test_half_precision_features_of_large_norm_do_not_overflow():
    features = (20_000 * drawn(B, L, D)).clamp(-60_000, 60_000).half()
    wide, loss_mask, levels = features.float(), torch.ones(B, L, dtype=torch.bool), torch.zeros(B, L)
    assert wide.norm(dim=-1).max() > torch.finfo(torch.float16).max > wide.abs().max()
    assert layer((features, loss_mask)) == pytest.approx(layer((wide, loss_mask)), rel=1e-12)
    expected = pair((wide, wide, loss_mask, levels, levels))
    assert pair((features, features, loss_mask, levels, levels)) == pytest.approx(expected, rel=1e-12)
    assert expected["cosine"] == pytest.approx(1, abs=1e-6)


def test_mistakes_are_named():
    features, loss_mask, levels = drawn(B, L, D), some_in_loss(), torch.zeros(B, L)
    with pytest.raises(ShapeError, match=r"target: expected \(3, 5, 'D'\), got \(3, 4, 8\)"):
        pair((features, features[:, :4], loss_mask, levels, levels))
    with pytest.raises(ShapeError, match="bool"):
        layer((features, loss_mask.float()))
    with pytest.raises(DataError, match="no token in the loss mask"):
        layer((features, torch.zeros(B, L, dtype=torch.bool)))
    with pytest.raises(DataError, match="no token in the loss mask"):
        pair((features, features, torch.zeros(B, L, dtype=torch.bool), levels, levels))
    with pytest.raises(ShapeError, match=r"levels: expected \(3, 5\)"):
        pair((features, features, loss_mask, torch.zeros(B, 1), torch.zeros(B, 1)))
