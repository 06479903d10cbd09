"""Streaming statistics and the Frechet distance: closed forms, scipy's matrix root, and another implementation."""

import numpy as np
import pytest
import torch

from core.errors import DataError, ShapeError
from core.evaluation.statistics import FeatureStatistics, RankDeficientWarning, frechet_distance


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(features, chunk=64):
    statistics = FeatureStatistics()
    for part in features.split(chunk):
        statistics.update(part)
    return statistics


def gaussian(mean, covariance, tmp_path, name):
    """Statistics with exactly these moments, through a file as other programs write it."""
    path = tmp_path / f"{name}.npz"
    np.savez(path, mu=np.asarray(mean), sigma=np.asarray(covariance), mu_s=np.zeros(7))
    return FeatureStatistics.load(path)


def covariance_of(size, seed):
    root = drawn(size, size, seed=seed).numpy()
    return root @ root.T


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_streaming_equals_numpy_and_keeps_its_digits_far_from_zero(chunk):
    """At a mean of 1e6 and a deviation of 1, sums of squares would leave 4 digits of the covariance."""
    features = drawn(300, 5) + 1e6
    statistics = seen(features, chunk)
    assert statistics.count == 300
    np.testing.assert_allclose(statistics.mean, features.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.numpy(), rowvar=False), atol=1e-8)


def test_merging_processes_equals_one_process():
    features = drawn(90, 4)
    whole, parts = seen(features), FeatureStatistics()
    for part in (features[:1], features[1:40], features[40:]):
        parts.merge(seen(part))
    parts.merge(FeatureStatistics())
    torch.testing.assert_close(parts.covariance, whole.covariance, atol=1e-13, rtol=0)
    assert parts.count == whole.count


def test_float32_and_half_features_are_summed_in_float64():
    features = drawn(500, 3).half()
    np.testing.assert_allclose(seen(features).covariance, np.cov(features.double().numpy(), rowvar=False), atol=1e-12)


def test_a_file_keeps_everything_and_can_be_continued(tmp_path):
    features = drawn(60, 4)
    first = seen(features[:40])
    first.save(tmp_path / "real.npz")
    with np.load(tmp_path / "real.npz") as file:
        assert set(file.files) == {"mu", "sigma", "count"}
    again = FeatureStatistics.load(tmp_path / "real.npz")
    torch.testing.assert_close(again.covariance, first.covariance, atol=1e-15, rtol=1e-14)
    again.update(features[40:])
    torch.testing.assert_close(again.covariance, seen(features).covariance, atol=1e-13, rtol=0)


def test_a_foreign_file_without_a_count_is_read_but_not_continued(tmp_path):
    statistics = gaussian(np.zeros(2), np.eye(2), tmp_path, "foreign")
    assert statistics.count is None
    assert not statistics.rank_deficient
    with pytest.raises(DataError, match="without a count"):
        statistics.update(torch.zeros(3, 2))
    with pytest.raises(DataError, match="without a count"):
        FeatureStatistics().merge(statistics)


def test_diagonal_gaussians_in_closed_form(tmp_path):
    """sum (m - n)^2 + (sqrt a - sqrt b)^2."""
    m, n = np.array([1.0, 2.0, -3.0]), np.array([0.5, 2.0, 1.0])
    a, b = np.array([4.0, 1e-10, 2.0]), np.array([1.0, 9.0, 0.0])
    found = frechet_distance(gaussian(m, np.diag(a), tmp_path, "a"), gaussian(n, np.diag(b), tmp_path, "b"))
    assert found == pytest.approx(((m - n) ** 2 + (np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("size", [2, 16, 64])
def test_full_covariances_against_the_matrix_root_of_scipy(size, tmp_path):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    a, b = covariance_of(size, 1), covariance_of(size, 2)
    m, n = drawn(2, size, seed=3).numpy()
    expected = ((m - n) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    found = frechet_distance(gaussian(m, a, tmp_path, "a"), gaussian(n, b, tmp_path, "b"))
    assert found == pytest.approx(expected, rel=1e-9)


def test_against_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")
    real, generated = drawn(400, 8, seed=1), drawn(300, 8, seed=2) * 1.5 + 0.3
    features = torch.nn.Identity()
    features.num_features = 8
    metric = fid.FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    assert frechet_distance(seen(real), seen(generated)) == pytest.approx(float(metric.compute()), rel=1e-9)


def test_rank_deficient_covariances_are_exact_and_reported():
    """Rank-one covariances a u u^T and b w w^T: trace term a + b - 2 sqrt(a b) |u.w|."""
    line = torch.tensor([[0.6, 0.8] + [0.0] * 98], dtype=torch.float64)
    other = torch.tensor([[1.0, 0.0] + [0.0] * 98], dtype=torch.float64)
    spread = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # variance 2 along the line
    first, second = seen(spread * line), seen(2 * spread * other)
    with pytest.warns(RankDeficientWarning) as caught:
        found = frechet_distance(first, second)
    assert len(caught) == 2
    assert "2 samples for 100 features" in str(caught[0].message)
    assert first.rank_deficient
    assert found == pytest.approx(2 + 8 - 2 * np.sqrt(2 * 8) * 0.6, rel=1e-12)


@pytest.mark.filterwarnings("ignore::core.evaluation.statistics.RankDeficientWarning")
def test_equal_sides_are_zero_even_when_singular():
    for samples in (20, 500):
        statistics = seen(drawn(samples, 40))
        assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-10)


def test_sampled_gaussians_approach_the_distance_of_their_moments():
    a, b = drawn(200_000, 2, seed=4), drawn(200_000, 2, seed=5) * 2 + 1
    assert frechet_distance(seen(a, 50_000), seen(b, 50_000)) == pytest.approx(4.0, abs=0.05)  # 2 * 1 + 2 * (2 - 1)^2


def test_negative_eigenvalues_of_rounding_pass_and_others_are_refused(tmp_path):
    rounded = np.diag([1.0, -1e-6])
    assert frechet_distance(
        gaussian(np.zeros(2), rounded, tmp_path, "a"), gaussian(np.zeros(2), np.diag([1.0, 0.0]), tmp_path, "b")
    ) == pytest.approx(0, abs=1e-12)
    broken = gaussian(np.zeros(2), np.diag([1.0, -0.1]), tmp_path, "c")
    with pytest.raises(DataError, match=r"eigenvalue -0\.1"):
        frechet_distance(broken, broken)


def test_mistakes_are_named(tmp_path):
    statistics = seen(drawn(10, 3))
    with pytest.raises(ShapeError, match=r"\(B, 3\), got \(2, 4\)"):
        statistics.update(torch.zeros(2, 4))
    with pytest.raises(DataError, match="NaN"):
        statistics.update(torch.full((2, 3), torch.nan))
    assert statistics.count == 10
    with pytest.raises(ShapeError, match="3 features on one side, 4"):
        frechet_distance(statistics, seen(drawn(10, 4)))
    with pytest.raises(DataError, match="at least 2 samples"):
        frechet_distance(statistics, seen(drawn(1, 3)))
    (tmp_path / "text.npz").write_text("no")
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    for name in ("text.npz", "array.npz.npy", "cut.npz", "absent.npz"):
        with pytest.raises(DataError, match=f"{name}: not an .npz file"):
            FeatureStatistics.load(tmp_path / name)
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    with pytest.raises(DataError, match="lacks sigma"):
        FeatureStatistics.load(tmp_path / "half.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(DataError, match=r"mu \(3,\) and sigma \(2, 2\)"):
        FeatureStatistics.load(tmp_path / "odd.npz")
