"""Kernel distance: against another implementation, unbiased where it must be 0, and equal for equal seeds."""

import numpy as np
import pytest
import torch

from core.errors import DataError, ShapeError
from core.evaluation.kernel import kernel_distance, squared_mmd


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand_over_pairs():
    a, b = drawn(4, 3, seed=1).numpy(), drawn(5, 3, seed=2).numpy()

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i in range(4) for j in range(4) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    found = squared_mmd(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def test_against_torchmetrics():
    """With subsets of all samples every subset is the whole set, in another order."""
    kid = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    a, b = drawn(200, 6, seed=1), drawn(200, 6, seed=2) + 0.5
    metric = kid.KernelInceptionDistance(feature=torch.nn.Identity(), subsets=2, subset_size=200)
    metric.update(a, real=True)
    metric.update(b, real=False)
    found = kernel_distance(a, b, subsets=2, subset_size=200)
    assert found.mean == pytest.approx(float(metric.compute()[0]), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_unbiased_for_equal_distributions_of_few_samples():
    """Mean over 400 pairs of sets of 20: 0 within 4 standard errors; the biased statistic would be 0.97."""
    values = torch.tensor([squared_mmd(drawn(20, 4, seed=2 * i), drawn(20, 4, seed=2 * i + 1)) for i in range(400)])
    assert values.mean().abs() < 4 * values.std() / 20
    assert values.min() < 0
    assert values.std() / 20 < 0.02


def test_mean_shift_in_closed_form():
    """D = 1, a = 0 always, b = m always: k(a, a) = 1, k(a, b) = 1, k(b, b) = (m^2 + 1)^3."""
    m = 0.7
    found = squared_mmd(torch.zeros(3, 1), torch.full((4, 1), m, dtype=torch.float64))
    assert found == pytest.approx((m * m + 1) ** 3 - 1, rel=1e-12)


def test_subsets_depend_on_the_seed_alone():
    a, b = drawn(100, 3, seed=1), drawn(80, 3, seed=2) * 2
    first = kernel_distance(a, b, subsets=10, subset_size=30, seed=1)
    torch.rand(1)
    assert kernel_distance(a, b, subsets=10, subset_size=30, seed=1) == first
    assert kernel_distance(a, b, subsets=10, subset_size=30, seed=2) != first
    assert first.std > 0
    assert kernel_distance(a, b, subsets=1, subset_size=30).std == 0
    whole = squared_mmd(a, b)
    assert first.mean == pytest.approx(whole, abs=first.std)


def test_too_few_samples_and_other_widths_are_refused():
    with pytest.raises(DataError, match="50 and 2000 samples, subsets of 1000"):
        kernel_distance(torch.zeros(50, 3), torch.zeros(2000, 3))
    with pytest.raises(ShapeError, match=r"\(50, 3\) and \(50, 4\)"):
        squared_mmd(torch.zeros(50, 3), torch.zeros(50, 4))
    with pytest.raises(DataError, match="at least 2"):
        squared_mmd(torch.zeros(1, 3), torch.zeros(5, 3))
