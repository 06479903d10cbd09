"""Distances of features against loops over numbers, and what tokens that do not count may do: nothing."""

import math

import pytest
import torch

from core.alignment.distances import DISTANCES, SMOOTH_L1_BETA, distance_problems

B, L, D = 2, 3, 4


@pytest.fixture
def features():
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, B, L, D, generator=draw, dtype=torch.float64)
    b[0, 0] = a[0, 0] + 0.01  # within the quadratic part of smooth_l1
    return a, b, torch.tensor([[True, True, False], [True, False, True]])


def cosine(u, v):
    return sum(x * y for x, y in zip(u, v, strict=True)) / math.sqrt(sum(x * x for x in u) * sum(y * y for y in v))


def smooth(x):
    return x * x / (2 * SMOOTH_L1_BETA) if abs(x) < SMOOTH_L1_BETA else abs(x) - SMOOTH_L1_BETA / 2


BY_HAND = {
    "cosine": lambda u, v: 1 - cosine(u, v),
    "l1": lambda u, v: sum(abs(x - y) for x, y in zip(u, v, strict=True)) / D,
    "l2": lambda u, v: sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) / D,
    "smooth_l1": lambda u, v: sum(smooth(x - y) for x, y in zip(u, v, strict=True)) / D,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_distance_of_each_counted_token(name, features):
    a, b, loss_mask = features
    rows = [(i, k) for i in range(B) for k in range(L) if loss_mask[i, k]]
    expected = sum(BY_HAND[name](a[i, k].tolist(), b[i, k].tolist()) for i, k in rows)
    assert float(DISTANCES[name](a, b, loss_mask)) == pytest.approx(expected, rel=1e-12)


def test_cosine_over_tokens_is_one_cosine_per_channel(features):
    a, b, loss_mask = features
    expected = 0
    for i in range(B):
        inputs = loss_mask[i].nonzero().flatten().tolist()
        columns = [[[float(x[i, k, c]) for k in inputs] for x in (a, b)] for c in range(D)]
        expected += len(inputs) * sum(1 - cosine(*pair) for pair in columns) / D
    assert float(DISTANCES["cosine_over_tokens"](a, b, loss_mask)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", DISTANCES)
def test_tokens_that_do_not_count_change_neither_value_nor_gradient(name, features):
    a, b, loss_mask = features
    other = torch.where(loss_mask[..., None], a, 1e3)
    values, gradients = [], []
    for prediction in (a, other):
        prediction.requires_grad_()
        value = DISTANCES[name](prediction, b, loss_mask)
        (gradient,) = torch.autograd.grad(value, prediction)
        values.append(float(value.detach()))
        gradients.append(gradient)
        assert (gradient[~loss_mask] == 0).all()
        assert gradient[loss_mask].abs().max() > 0
    assert values[0] == values[1]
    assert torch.equal(*gradients)
    nothing = DISTANCES[name](a, b, torch.zeros_like(loss_mask))
    assert float(nothing.detach()) == 0


def test_an_unknown_distance_is_refused_with_the_nearest():
    assert distance_problems("cosine") == []
    (line,) = distance_problems("cosin")
    assert "not one of cosine, l1, l2, smooth_l1, cosine_over_tokens" in line
    assert "Did you mean: 'cosine'?" in line
