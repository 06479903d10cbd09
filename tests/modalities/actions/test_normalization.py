"""Normalization of actions: against the published statistics of RT-1 and against arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autoencoders.base import LatentNormalization
from core.errors import ConfigError, ShapeError
from modalities.actions.normalization import no_action, vector_normalization
from modalities.actions.statistics import Statistics, measure, read_statistics, write_statistics

# Of all 87,212 episodes of RT-1, as Octo and OpenVLA publish them.
RT1 = {
    "action": {
        "mean": [0.00698757, 0.00626587, -0.01262511, 0.04333273, -0.00575625, 0.00091302, 0.53542048],
        "std": [0.06921152, 0.05971041, 0.07353049, 0.15610518, 0.1316441, 0.14593837, 0.49711153],
        "max": [2.99845934, 22.09052849, 2.75075245, 1.57063651, 1.53210866, 1.56915224, 1.0],
        "min": [-2.02045202, -5.49789953, -2.03166342, -1.56991792, -1.56989217, -1.57041943, 0.0],
        "p99": [0.17824687, 0.1493838, 0.21842355, 0.5892666, 0.35272657, 0.44796681, 1.0],
        "p01": [-0.22453528, -0.14820013, -0.23158971, -0.35179949, -0.41930113, -0.43643461, 0.0],
    },
    "proprio": {"mean": [0.5, 0.1], "std": [1.0, 1.0], "min": [0, 0], "max": [1, 1], "p01": [0, 0], "p99": [1, 1]},
    "num_transitions": 3786400,
}


@pytest.fixture
def rt1(tmp_path: Path) -> Path:
    path = tmp_path / "fractal.json"
    path.write_text(json.dumps(RT1))
    return path


def test_the_published_file_of_rt1_is_read(rt1):
    found = read_statistics(rt1, "action")
    assert (found.width, found.count) == (7, 3786400)
    assert found.values["q01"][2] == -0.23158971
    assert read_statistics(rt1, "state").width == 2


def test_quantiles_become_the_ends_and_are_clipped_once_on_the_way_in(rt1):
    normalization = vector_normalization(read_statistics(rt1, "action"), keep=[6])
    low, high = (torch.tensor(RT1["action"][name]) for name in ("p01", "p99"))
    ends = torch.stack([low, high, 2 * low, 2 * high])
    ends[:, 6] = torch.tensor([0.0, 1.0, 0.5, 2.0])
    seen = normalization.normalize(ends)
    assert torch.allclose(seen[0, :6], torch.tensor(-1.0), atol=1e-6)
    assert torch.allclose(seen[1, :6], torch.tensor(1.0), atol=1e-6)
    assert torch.allclose(seen[2:, :6], seen[:2, :6])
    assert seen[:, 6].tolist() == [0.0, 1.0, 0.5, 2.0]  # the gripper as it is
    # what a network says beyond the ends is carried out
    assert torch.allclose(normalization.denormalize(torch.full((7,), 2.0))[:6], ((low + high) / 2 + high - low)[:6])


def test_standing_still_is_not_zero_in_normalized_units(rt1):
    normalization = vector_normalization(read_statistics(rt1, "action"), keep=[6])
    still = no_action(normalization)
    assert torch.allclose(normalization.denormalize(still), torch.zeros(7), atol=1e-6)
    assert still[2].item() == pytest.approx((0.23158971 - 0.21842355) / (0.23158971 + 0.21842355))
    # a normalized 0 is 6.6 mm down at every step
    assert normalization.denormalize(torch.zeros(7))[2].item() == pytest.approx(-0.00658308, abs=1e-7)
    pose = torch.tensor([0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 1.0])
    assert torch.allclose(normalization.denormalize(no_action(normalization, pose)), pose, atol=1e-6)


def degenerate() -> tuple[np.ndarray, Statistics]:
    """Numbers that vary, hardly ever leave 0, never change, and never change from 1000.1."""
    rng = np.random.default_rng(0)
    rows = np.zeros((2000, 4), dtype=np.float32)
    rows[:, 0] = rng.normal(size=2000)
    rows[:10, 1] = np.linspace(-1, 2, 10)
    rows[:, 2] = 0.25
    rows[:, 3] = 1000.1
    return rows, measure([rows])


@pytest.mark.parametrize("mode", ["quantiles", "min_max", "mean_std"])
def test_degenerate_numbers_come_back_and_are_not_blown_up(mode):
    rows, statistics = degenerate()
    normalization = vector_normalization(statistics, mode)
    seen = normalization.normalize(torch.tensor(rows))
    assert seen.isfinite().all()
    assert seen.abs().max() <= (1 + 1e-6 if mode != "mean_std" else 60)
    back = normalization.denormalize(seen)
    inside = slice(1, None) if mode == "quantiles" else slice(None)  # the first is clipped
    assert torch.allclose(back[:, inside], torch.tensor(rows)[:, inside], rtol=1e-6, atol=1e-5)
    noise = normalization.denormalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    assert (noise[:, 2] == 0.25).all()
    assert (noise[:, 3] == np.float32(1000.1)).all()
    assert (seen[:, 2:] == 0).all()


def test_measured_statistics_are_those_of_numpy(tmp_path):
    rows, statistics = degenerate()
    assert statistics.count == 2000
    np.testing.assert_allclose(statistics.values["q01"], np.quantile(rows.astype(np.float64), 0.01, axis=0))
    np.testing.assert_allclose(statistics.values["std"], rows.astype(np.float64).std(axis=0))
    again = measure([rows[:700], rows[700:]])
    assert again.digest == statistics.digest
    path = tmp_path / "deep" / "s.json"
    write_statistics(path, {"action": statistics}, {"episodes": 3})
    read = read_statistics(path, "action")
    assert read.digest == statistics.digest == json.loads(path.read_text())["action"]["digest"]
    assert measure([rows + 1]).digest != statistics.digest
    with pytest.raises(ConfigError, match=r"has none of state, proprio, observation.state; it has action, episodes"):
        read_statistics(path, "state")


def test_files_that_are_no_statistics(tmp_path, rt1):
    path = tmp_path / "x.json"
    with pytest.raises(ConfigError, match=r"statistics: .*x.json cannot be read .*`selfflow stats` writes such a file"):
        read_statistics(path, "action")
    for text, message in (
        ("{", "not valid JSON"),
        ("[1]", "holds a list"),
        ('{"action": {"mean": [1, NaN]}}', "action.mean: must be a list of finite numbers"),
        ('{"action": {"mean": [1], "std": [1, 2]}}', "lists of one length: 1 of mean, 2 of std"),
        ('{"action": {"norm": 1}}', "there are none"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_statistics(path, "action")
    path.write_text(json.dumps({"action": {name: RT1["action"][name] for name in ("mean", "std", "min", "max")}}))
    with pytest.raises(ConfigError, match=r"lacks q01, q99, which normalize: 'quantiles' reads; `selfflow stats`"):
        vector_normalization(read_statistics(path, "action"))
    assert vector_normalization(read_statistics(path, "action"), "min_max").high is not None


def test_a_checkpoint_keeps_ends_and_digest(rt1):
    normalization = vector_normalization(read_statistics(rt1, "action"), keep=[6])
    plain = json.loads(json.dumps(normalization.to_dict(), allow_nan=False))
    again = LatentNormalization.from_dict(plain)
    for name in ("mean", "std", "low", "high"):
        assert torch.equal(getattr(again, name), getattr(normalization, name))
    assert again.digest == normalization.digest != ""
    assert "low" not in LatentNormalization(torch.zeros(2), torch.ones(2)).to_dict()
    with pytest.raises(ShapeError, match="low and high go together"):
        LatentNormalization(torch.zeros(2), torch.ones(2), low=torch.zeros(2))
    with pytest.raises(ShapeError, match="low must not lie above high"):
        LatentNormalization(torch.zeros(2), torch.ones(2), torch.ones(2), torch.zeros(2))
