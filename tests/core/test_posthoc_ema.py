"""Post-hoc EMA against direct sums, and its snapshots."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import CheckpointError, ConfigError
from core.training.posthoc_ema import (
    PosthocEma,
    PosthocEmaConfig,
    Snapshot,
    beta_at,
    gamma_of,
    overlap,
    reconstruct,
    solve,
)

STEPS = 4000
# A scalar weight after each step: it rises, swings and jitters.
_t = np.arange(1, STEPS + 1)
TRAJECTORY = 2 * _t / STEPS + np.sin(_t / 150) + 0.3 * np.random.default_rng(0).standard_normal(STEPS)


def direct(length: float, step: int) -> float:
    """The average by its definition: the profile (gamma + 1) u^gamma / t^(gamma + 1), integrated over each step."""
    edges = (np.arange(step + 1) / step) ** (gamma_of(length) + 1)
    return float(np.diff(edges) @ TRAJECTORY[:step])


def test_the_exponents_are_the_papers():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)
    for gamma in (0.5, 3.0, 30.0):
        length = math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))
        assert gamma_of(length) == pytest.approx(gamma)
        moments = [(gamma + 1) / (gamma + 1 + power) for power in (1, 2)]  # of the profile on [0, 1]
        assert length == pytest.approx(math.sqrt(moments[1] - moments[0] ** 2))


@pytest.mark.parametrize("length", [0.02, 0.05, 0.10, 0.25])
def test_the_running_average_is_the_integral_of_its_profile(length):
    average = 0.0
    for step in range(1, STEPS + 1):
        beta = beta_at(gamma_of(length), step)
        average = beta * average + (1 - beta) * TRAJECTORY[step - 1]
        if step in (1, 7, 100, STEPS):
            assert average == pytest.approx(direct(length, step), rel=1e-9)


def test_the_overlap_of_two_profiles_is_their_integral():
    grid = (np.arange(200_000) + 0.5) / 200_000

    def profile(u, time, gamma):
        return np.where(u <= time, (gamma + 1) * u**gamma / time ** (gamma + 1), 0.0)

    for time_a, gamma_a, time_b, gamma_b in ((0.5, 3.0, 1.0, 7.0), (1.0, 17.0, 0.8, 2.0), (0.9, 4.0, 0.9, 4.0)):
        expected = (profile(grid, time_a, gamma_a) * profile(grid, time_b, gamma_b)).mean()
        assert float(overlap(time_a, gamma_a, time_b, gamma_b)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("length", "error"), [(0.03, 0.03), (0.06, 0.003), (0.08, 0.003), (0.13, 0.004), (0.2, 0.02)])
def test_any_length_is_put_together_from_snapshots_of_two(length, error):
    snapshots = [Snapshot(step, kept) for step in range(200, STEPS + 1, 200) for kept in (0.05, 0.10)]
    recipe = solve(snapshots, length, STEPS)
    made = sum(factor * direct(snapshot.length, snapshot.step) for snapshot, factor in recipe.factors.items())
    assert made == pytest.approx(direct(length, STEPS), abs=0.02)
    assert 0 < recipe.error < error
    assert sum(recipe.factors.values()) == pytest.approx(1)
    # The error is that of the profile, by another way: a sum over a grid.
    grid = np.linspace(0, STEPS, 400_001)[1:]

    def profile(time, kept):
        gamma = gamma_of(kept)
        return np.where(grid <= time, (gamma + 1) / time * (grid / time) ** gamma, 0.0)

    wanted = profile(STEPS, length)
    missed = wanted - sum(factor * profile(s.step, s.length) for s, factor in recipe.factors.items())
    assert recipe.error == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(wanted), rel=0.02)


def test_a_stored_length_is_its_own_snapshot():
    snapshots = [Snapshot(step, kept) for step in (1000, 2000, 3000, STEPS) for kept in (0.05, 0.10)]
    recipe = solve(snapshots, 0.10, STEPS)
    assert recipe.factors[Snapshot(STEPS, 0.10)] == pytest.approx(1)
    assert recipe.error < 1e-6
    assert recipe.warning() is None


def test_a_length_that_the_snapshots_cannot_make_is_warned_of():
    snapshots = [Snapshot(step, kept) for step in (2000, STEPS) for kept in (0.05, 0.10)]
    assert "choose one nearer to those that are stored" in solve(snapshots, 0.01, STEPS).warning()


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_out_of_range_are_refused(length, tmp_path):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 0.28\]"):
        reconstruct(tmp_path, length, 10)


def test_settings_that_cannot_work_are_refused():
    assert PosthocEmaConfig().problems() == []
    assert PosthocEmaConfig(every=-1).problems() == ["every: -1 must not be negative"]
    assert "two different ones" in PosthocEmaConfig(lengths=[0.1]).problems()[0]
    assert "0.5 must lie in" in PosthocEmaConfig(lengths=[0.1, 0.5]).problems()[0]


class Scalar(nn.Module):
    """One weight that takes the values of the trajectory, one that never changes, and a buffer."""

    def __init__(self):
        super().__init__()
        self.moving, self.still = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((3,), 1.7))
        self.register_buffer("table", torch.arange(3.0))


def trained(root, steps: int, every: int) -> PosthocEma:
    model = Scalar()
    averages = PosthocEma(PosthocEmaConfig(every=every), model, root)
    for step in range(1, steps + 1):
        model.moving.data.fill_(float(TRAJECTORY[step - 1]))
        averages.update(step)
        if step % every == 0:
            averages.snapshot(step)
    return averages


def test_weights_of_any_length_come_out_of_a_run_folder(tmp_path):
    averages = trained(tmp_path, 800, 40)
    for part, length in (("ema-0.05", 0.05), ("ema-0.1", 0.10)):
        assert float(averages.state()[part]["moving"][0]) == pytest.approx(direct(length, 800), abs=1e-5)
    for length in (0.05, 0.08, 0.12):
        weights, recipe = reconstruct(tmp_path, length, 800)
        assert weights["moving"].dtype == torch.float32
        assert weights["moving"].tolist() == pytest.approx([direct(length, 800)] * 2, abs=0.01)
        torch.testing.assert_close(weights["still"], torch.full((3,), 1.7))
        torch.testing.assert_close(weights["table"], torch.arange(3.0))
        assert recipe.step == 800
    earlier, recipe = reconstruct(tmp_path, 0.08, 519)
    assert recipe.step == 480
    assert float(earlier["moving"][0]) == pytest.approx(direct(0.08, 480), abs=0.01)


def test_a_damaged_snapshot_is_left_out_and_none_is_an_error(tmp_path, capsys):
    trained(tmp_path, 80, 20)
    (tmp_path / "ema" / "step-00000040" / "state.json").write_text("{}")
    _, recipe = reconstruct(tmp_path, 0.08, 80)
    assert {snapshot.step for snapshot in recipe.factors} == {20, 60, 80}
    assert "step-00000040" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="no EMA snapshots up to step 10; a run makes them with"):
        reconstruct(tmp_path, 0.08, 10)


def test_a_snapshot_is_made_once_and_later_ones_are_forgotten(tmp_path):
    averages = trained(tmp_path, 60, 20)
    before = (tmp_path / "ema" / "step-00000060" / "manifest.json").stat().st_mtime_ns
    averages.snapshot(60)
    assert (tmp_path / "ema" / "step-00000060" / "manifest.json").stat().st_mtime_ns == before
    averages.store.forget(20)
    assert averages.store.steps() == [20]
