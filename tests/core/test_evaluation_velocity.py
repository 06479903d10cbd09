"""The held-out velocity loss, with trunks whose error is known in closed form."""

from dataclasses import replace

import pytest
import torch

from core.errors import DataError
from core.evaluation.inputs import noisy_inputs
from core.evaluation.velocity import velocity_loss_curve
from core.flow import velocity
from tests.core.evaluation_batches import KnownTrunk, batches, joined, segment, tiny_mmdit

TIMES = (0.1, 0.4, 0.9)


def test_a_constant_velocity_errs_by_both_variances_and_its_square():
    """E (c - x1 + x0)^2 = c^2 + 1 + scale^2 at every time."""
    trunk = KnownTrunk(lambda x, t: torch.full_like(x, 0.5))
    curve = velocity_loss_curve(trunk, batches(256, 64, tokens=32, scale=2.0), TIMES, seed=1)
    assert curve.losses["image"] == pytest.approx([0.25 + 1 + 4] * 3, rel=0.02)
    assert curve.mean("image") == pytest.approx(sum(curve.losses["image"]) / 3)
    assert curve.timesteps == TIMES
    assert curve.tokens == {"image": 256 * 32}


def test_the_optimal_velocity_of_gaussian_data_leaves_the_conditional_variance():
    """For x0 ~ N(0, s^2): v*(x, t) = (t - (1-t) s^2) / D x and the loss is s^2 / D, D = (1-t)^2 s^2 + t^2."""
    s2 = 4.0

    def optimal(x, t):
        return (t - (1 - t) * s2) / ((1 - t) ** 2 * s2 + t**2) * x

    curve = velocity_loss_curve(KnownTrunk(optimal), batches(256, 64, tokens=32, scale=2.0), TIMES, seed=1)
    assert curve.losses["image"] == pytest.approx([s2 / ((1 - t) ** 2 * s2 + t**2) for t in TIMES], rel=0.02)


def test_by_hand_over_uneven_batches():
    """A mean over tokens, not over batches: 5 samples in batches of 2, 2, 1."""
    curve = velocity_loss_curve(KnownTrunk(), batches(5, 2), TIMES, seed=7)
    (batch,) = batches(5, 5)
    for index, timestep in enumerate(TIMES):
        noisy, noise, _ = noisy_inputs(batch, timestep, 7, index)
        expected = (noisy[0] - velocity(batch.segments[0].x0, noise[0])).square().mean()
        assert curve.losses["image"][index] == pytest.approx(float(expected), rel=1e-6)


def test_the_batch_size_changes_nothing():
    curves = [velocity_loss_curve(KnownTrunk(), batches(7, size), TIMES, seed=7) for size in (1, 3, 7)]
    for other in curves[1:]:
        assert other.losses["image"] == pytest.approx(curves[0].losses["image"], rel=1e-12)
    assert velocity_loss_curve(KnownTrunk(), batches(7, 7), TIMES, seed=8) != curves[-1]


def test_modalities_and_uncounted_tokens_are_kept_apart():
    keys = ["a", "b"]
    conditioning_mask = torch.zeros(2, 6, dtype=torch.bool)
    conditioning_mask[:, :2] = True
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 5] = False

    def rule(x, t):  # wrong by far wherever it sees a given token
        return torch.where(t == 0, 1e6, 0.0) + torch.zeros_like(x)

    trunk = KnownTrunk(rule)
    batch = joined(
        keys,
        segment(keys, conditioning_mask=conditioning_mask, valid=valid),
        segment(keys, "action", tokens=3, channels=2),
    )
    curve = velocity_loss_curve(trunk, [batch], (0.5,), seed=1)
    assert curve.tokens == {"image": 7, "action": 6}
    assert trunk.levels[0].values.tolist() == [[0.5, 0.0]] * 2
    noise = noisy_inputs(batch, 0.5, 1).noise
    for part, x1 in zip(batch.segments, noise, strict=True):
        expected = velocity(part.x0, x1).square()[part.loss_mask()].mean()
        assert curve.losses[part.modality][0] == pytest.approx(float(expected), rel=1e-6)


def test_a_real_trunk_sees_the_condition_in_batches_of_any_size():
    trunk = tiny_mmdit()
    curves = [velocity_loss_curve(trunk, batches(3, size), (0.2, 0.8), seed=1) for size in (1, 3)]
    assert curves[0].losses["image"] == pytest.approx(curves[1].losses["image"], rel=1e-5)
    conditions = [replace(batch, context=batch.context.drop_all()) for batch in batches(3, 3)]
    unconditional = velocity_loss_curve(trunk, conditions, (0.2, 0.8), seed=1)
    assert unconditional.losses["image"] != pytest.approx(curves[1].losses["image"], rel=1e-4)


def test_mistakes_are_named():
    with pytest.raises(DataError, match="grid of timesteps is empty"):
        velocity_loss_curve(KnownTrunk(), batches(2, 2), (), seed=0)
    with pytest.raises(DataError, match="no tokens in the loss masks"):
        velocity_loss_curve(KnownTrunk(), [], TIMES, seed=0)
    conditioning_mask = torch.ones(1, 6, dtype=torch.bool)
    with pytest.raises(DataError, match=r"no tokens in the loss masks of the batches: image"):
        velocity_loss_curve(
            KnownTrunk(), [joined(["a"], segment(["a"], conditioning_mask=conditioning_mask))], TIMES, seed=0
        )
