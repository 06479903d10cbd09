"""Probes: known answers, an independent Newton solution, and no way from test labels into the fit."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.errors import DataError, ShapeError
from core.evaluation.probes import fit_logistic, knn_accuracy, linear_probe


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def clusters(count, classes, dims, spread, seed):
    """Points around one center per class; centers are the same for every seed."""
    y = labels(count, classes, seed)
    return 3 * drawn(classes, dims, seed=99)[y] + spread * drawn(count, dims, seed=seed + 1), y


def newton(x, y, classes, l2):
    """Damped Newton with the full Hessian, in numpy. Returns weight (D, K) and centerd bias (K,)."""
    n, d = x.shape
    x1 = np.hstack([x, np.ones((n, 1))])
    penalty = np.diag([l2] * d + [0.0])
    w = np.zeros((d + 1, classes))
    hot = np.eye(classes)[y]
    for _ in range(50):
        score = x1 @ w
        p = np.exp(score - score.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x1.T @ (p - hot) / n + penalty @ w
        hessian = np.einsum("nk,kl,ni,nj->ikjl", p, np.eye(classes), x1, x1) / n
        hessian -= np.einsum("nk,nl,ni,nj->ikjl", p, p, x1, x1) / n
        hessian += np.einsum("ij,kl->ikjl", penalty, np.eye(classes))
        size = (d + 1) * classes
        w -= 0.9 * (np.linalg.pinv(hessian.reshape(size, size)) @ gradient.reshape(size)).reshape(d + 1, classes)
    return w[:-1], w[-1] - w[-1].mean()


@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_the_fit_is_the_minimum_that_newton_finds(l2):
    x, y = clusters(80, 3, 4, spread=3.0, seed=5)
    x = x.double()
    weight, bias = newton(x.numpy(), y.numpy(), 3, l2)
    found = fit_logistic(x, y, 3, l2)
    np.testing.assert_allclose(found.weight, weight, atol=2e-5)
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias, atol=2e-5)
    assert found.gradient < 1e-6


def test_a_start_from_elsewhere_ends_at_the_same_minimum():
    x, y = clusters(80, 3, 4, spread=3.0, seed=5)
    x = x.double()
    cold = fit_logistic(x, y, 3, 1e-2)
    warm = fit_logistic(x, y, 3, 1e-2, start=fit_logistic(x, y, 3, 1.0))
    torch.testing.assert_close(warm.weight, cold.weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize("l2", [1e-1, 1e-5])
def test_correlated_features_reach_the_minimum_too(l2):
    """As a network's: a few strong directions, many weak ones, and one that is constant. The gradient is autograd's."""
    draw = torch.Generator().manual_seed(3)
    strength = torch.logspace(0, -4, 40, dtype=torch.float64)
    x = torch.randn(300, 40, generator=draw, dtype=torch.float64) * strength
    x = x @ torch.linalg.qr(torch.randn(40, 40, generator=draw, dtype=torch.float64)).Q
    x, y = torch.cat([x - x.mean(0), torch.zeros(300, 1).double()], dim=1), torch.randint(4, (300,), generator=draw)
    found = fit_logistic(x, y, 4, l2)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    (F.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()).backward()
    gradient = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    assert found.gradient == pytest.approx(gradient, abs=1e-9)
    assert gradient < 1e-6


def test_separable_classes_are_found_and_random_labels_are_not():
    train, test = clusters(300, 4, 16, 0.1, seed=1), clusters(200, 4, 16, 0.1, seed=11)
    assert linear_probe(*train, *test, classes=4).accuracy == 1.0
    assert knn_accuracy(*train, *test, classes=4) == 1.0
    noise_train, noise_test = (drawn(400, 5), labels(400, 4, 7)), (drawn(4000, 5, seed=2), labels(4000, 4, 8))
    assert linear_probe(*noise_train, *noise_test, classes=4).accuracy == pytest.approx(0.25, abs=0.03)
    assert knn_accuracy(*noise_train, *noise_test, classes=4) == pytest.approx(0.25, abs=0.03)


def test_the_scale_and_place_of_a_feature_do_not_matter():
    (train_x, train_y), (test_x, test_y) = clusters(200, 4, 8, 4.0, seed=1), clusters(200, 4, 8, 4.0, seed=11)
    scale, move = torch.logspace(-3, 3, 8), torch.arange(8.0)
    plain = linear_probe(train_x, train_y, test_x, test_y, 4)
    other = linear_probe(train_x * scale + move, train_y, test_x * scale + move, test_y, 4)
    assert other.l2 == plain.l2
    assert (other.predictions == plain.predictions).double().mean() > 0.99  # float32 features were rounded


def test_a_feature_that_never_varied_in_training_says_nothing():
    (train_x, train_y), (test_x, test_y) = clusters(200, 4, 8, 4.0, seed=1), clusters(200, 4, 8, 4.0, seed=11)
    plain = linear_probe(train_x, train_y, test_x, test_y, 4)
    train_x = torch.cat([train_x.double(), torch.full((200, 1), 0.1, dtype=torch.float64)], dim=1)
    test_x = torch.cat([test_x.double(), torch.full((200, 1), 1.1, dtype=torch.float64)], dim=1)
    assert torch.equal(linear_probe(train_x, train_y, test_x, test_y, 4).predictions, plain.predictions)


def test_the_penalty_is_chosen_on_training_samples_and_matters():
    """More features than samples: the weakest penalty overfits, and the split of the training set shows it."""
    (train_x, train_y), (test_x, test_y) = clusters(100, 2, 60, 25.0, seed=3), clusters(2000, 2, 60, 25.0, seed=13)
    chosen = linear_probe(train_x, train_y, test_x, test_y, 2)
    weakest = linear_probe(train_x, train_y, test_x, test_y, 2, l2_values=(1e-5,))
    assert chosen.l2 > 1e-3
    assert chosen.validation[chosen.l2] == max(chosen.validation.values())
    assert chosen.accuracy > weakest.accuracy
    assert chosen.validation[1e-5] < 0.9  # it fits its own samples without an error
    again = linear_probe(train_x, train_y.int(), test_x, test_y.int(), 2)
    assert again.validation == chosen.validation
    assert torch.equal(again.predictions, chosen.predictions)


def test_equal_penalties_resolve_to_the_stronger():
    train, test = clusters(300, 4, 16, 0.1, seed=1), clusters(20, 4, 16, 0.1, seed=11)
    result = linear_probe(*train, *test, classes=4, l2_values=(1e-4, 1e-2, 1e-3))
    assert set(result.validation.values()) == {1.0}
    assert result.l2 == 1e-2


def test_nothing_of_the_test_set_reaches_the_fit():
    """Neither labels nor other test features change a prediction or the choice of the penalty."""
    (train_x, train_y), (test_x, test_y) = clusters(200, 4, 8, 4.0, seed=1), clusters(200, 4, 8, 4.0, seed=11)
    plain = linear_probe(train_x, train_y, test_x, test_y, 4)
    relabeled = linear_probe(train_x, train_y, test_x, (test_y + 1) % 4, 4)
    moved = torch.cat([test_x[:50], 1000 * drawn(150, 8, seed=4)])
    beside_others = linear_probe(train_x, train_y, moved, test_y, 4)
    assert torch.equal(relabeled.predictions, plain.predictions)
    assert relabeled.validation == plain.validation == beside_others.validation
    assert torch.equal(beside_others.predictions[:50], plain.predictions[:50])
    assert relabeled.accuracy < plain.accuracy


def test_knn_by_hand():
    """Two neighbors of class 1 at cosine 0.8 against one of class 0 at cosine 1."""
    train_x = torch.tensor([[2.0, 0.0], [0.8, 0.6], [8.0, -6.0], [-1.0, 0.0]])
    train_y = torch.tensor([0, 1, 1, 2])
    query, wanted = torch.tensor([[5.0, 0.0]]), torch.tensor([1])
    # exp(1 / T) against 2 exp(0.8 / T): equal at T = 0.2 / ln 2 = 0.2885
    assert knn_accuracy(train_x, train_y, query, wanted, 3, k=3, temperature=0.29) == 1.0
    assert knn_accuracy(train_x, train_y, query, wanted, 3, k=3, temperature=0.28) == 0.0
    assert knn_accuracy(train_x, train_y, query, wanted, 3, k=1, temperature=10.0) == 0.0
    assert knn_accuracy(train_x, train_y, query, wanted, 3, k=20, temperature=0.29) == 1.0
    relabeled = torch.tensor([2, 1, 1, 0])
    assert knn_accuracy(train_x, relabeled, query, torch.tensor([2]), 3, temperature=1e-4) == 1.0  # no overflow


def test_knn_chunks_change_nothing():
    train, test = clusters(100, 4, 6, 6.0, seed=1), clusters(90, 4, 6, 6.0, seed=11)
    assert knn_accuracy(*train, *test, classes=4, chunk=7) == knn_accuracy(*train, *test, classes=4)


def test_mistakes_are_named():
    x, y = drawn(20, 3), labels(20, 2)
    with pytest.raises(DataError, match=r"train: labels 0 to 1 must lie in \[0, 1\)"):
        linear_probe(x, y, x, y, classes=1)
    with pytest.raises(ShapeError, match=r"test: .*\(20, 3\) and \(19,\)"):
        knn_accuracy(x, y, x, y[:19], classes=2)
    with pytest.raises(ShapeError, match="integer labels"):
        linear_probe(x, y.float(), x, y, classes=2)
    with pytest.raises(DataError, match="train: features contain NaN"):
        linear_probe(x * torch.nan, y, x, y, classes=2)
    with pytest.raises(DataError, match="4 training and 20 test samples"):
        linear_probe(x[:4], y[:4], x, y, classes=2)
    with pytest.raises(DataError, match="0 training"):
        knn_accuracy(x[:0], y[:0], x, y, classes=2)
