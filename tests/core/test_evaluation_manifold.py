"""Precision, recall, density and coverage on point sets whose answer is known."""

import pytest
import torch

from core.errors import DataError, ShapeError
from core.evaluation.manifold import density_coverage, precision_recall


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Real points 0, 1, 3, 7; with k = 1 their balls reach 1, 1, 2, 4 far: [-1, 1], [0, 2], [1, 5], [3, 11].
REAL = column(0, 1, 3, 7)
# Generated points lie in 1, 2, 2, 0 and 1 of these balls.
GENERATED = column(-0.5, 1.5, 4, 11.5, 10.1)


def test_precision_and_density_by_hand():
    precision, recall = precision_recall(REAL, GENERATED, k=1)
    assert precision == pytest.approx(4 / 5)
    # generated balls: -0.5 +- 2, 1.5 +- 2, 4 +- 2.5, 11.5 +- 1.4, 10.1 +- 1.4; 7 lies in none
    assert recall == pytest.approx(3 / 4)
    density, coverage = density_coverage(REAL, GENERATED, k=1)
    assert density == pytest.approx((1 + 2 + 2 + 0 + 1) / 5)
    assert coverage == 1.0


def test_k_counts_neighbors_without_the_point_itself():
    """With k = 2 the ball of real 0 reaches 3 far and contains -2.9; with k = 1 it does not."""
    generated = column(-2.9, 100, 101, 102)
    assert precision_recall(REAL, generated, k=1).precision == 0
    assert precision_recall(REAL, generated, k=2).precision == pytest.approx(1 / 4)
    assert density_coverage(REAL, generated, k=2).coverage == pytest.approx(1 / 4)


def test_balls_are_closed():
    """A generated point on the border, and copies of duplicated real points, whose balls have radius 0."""
    assert precision_recall(REAL, column(-1, 50, 60), k=1).precision == pytest.approx(1 / 3)
    copies = column(2, 2, 5, 5)
    assert precision_recall(copies, copies, k=1) == (1.0, 1.0)
    assert density_coverage(copies, copies, k=1).coverage == 1.0


def test_a_set_against_itself_and_against_a_distant_one():
    points = drawn(60, 8)
    assert precision_recall(points, points) == (1.0, 1.0)
    density, coverage = density_coverage(points, points)
    assert coverage == 1.0
    # every ball holds its center, its k neighbors and no more: density (k + 1) / k
    assert density == pytest.approx(6 / 5)
    assert precision_recall(points, points + 100) == (0.0, 0.0)
    assert density_coverage(points, points + 100) == (0.0, 0.0)


def test_expected_coverage_of_equal_distributions():
    """E[coverage] = 1 - (M - 1) ... (M - k) / ((2 M - 1) ... (2 M - k)) for equal sets of M (Naeem et al., Eq. 9)."""
    samples, k = 200, 5
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (samples - i) / (2 * samples - i)
    found = [density_coverage(drawn(samples, 4, seed=i), drawn(samples, 4, seed=1000 + i), k) for i in range(40)]
    coverage = sum(c for _, c in found) / len(found)
    density = sum(d for d, _ in found) / len(found)
    assert coverage == pytest.approx(1 - missed, abs=0.01)
    assert density == pytest.approx(1.0, abs=0.05)  # E[density] = 1


def test_mode_collapse_costs_recall_and_coverage_and_noise_costs_precision():
    real = drawn(300, 3, seed=1)
    narrow, wide = drawn(300, 3, seed=2) * 0.1, drawn(300, 3, seed=3) * 4
    assert precision_recall(real, narrow).precision > 0.95
    assert precision_recall(real, narrow).recall < 0.1
    assert density_coverage(real, narrow).coverage < 0.2
    assert precision_recall(real, wide).precision < 0.3
    assert precision_recall(real, wide).recall > 0.9


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_and_a_common_shift_change_nothing(chunk):
    real, generated = drawn(50, 5, seed=1).double(), drawn(40, 5, seed=2).double()
    expected = (*precision_recall(real, generated), *density_coverage(real, generated))
    moved, moved_too = real + 1e8, generated + 1e8
    assert (*precision_recall(moved, moved_too, chunk=chunk), *density_coverage(moved, moved_too, chunk=chunk)) == (
        expected
    )


def test_mistakes_are_named():
    with pytest.raises(DataError, match="3 real and 9 generated samples, k = 3"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(ShapeError, match=r"\(9, 2\) and \(9, 3\)"):
        density_coverage(torch.zeros(9, 2), torch.zeros(9, 3))
