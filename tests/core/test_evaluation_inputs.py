"""Noisy inputs: the path, keyed noise, padding and given tokens."""

import pytest
import torch

from core.errors import DataError, ShapeError
from core.evaluation.inputs import noisy_inputs
from core.types import TokenBatch
from tests.core.evaluation_batches import batches, joined, segment


def test_every_token_lies_on_the_path_at_one_level():
    (batch,) = batches(3, 3)
    noisy, noise, levels = noisy_inputs(batch, 0.3, seed=1)
    assert levels.index is None
    assert torch.equal(levels.values, torch.full((3, 1), 0.3))
    torch.testing.assert_close(noisy[0], 0.7 * batch.segments[0].x0 + 0.3 * noise[0], atol=1e-6, rtol=0)


def test_noise_is_a_unit_normal_keyed_by_seed_sample_index_and_place():
    (batch,) = batches(200, 200, tokens=20)
    noise = noisy_inputs(batch, 0.5, seed=1).noise[0]
    assert noise.mean().abs() < 0.03
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    rows = noise.flatten(1)
    assert torch.corrcoef(rows[:20]).fill_diagonal_(0).abs().max() < 0.5  # samples differ
    for other in (noisy_inputs(batch, 0.5, seed=2), noisy_inputs(batch, 0.5, seed=1, index=1)):
        assert not torch.equal(other.noise[0], noise)
    assert torch.equal(noisy_inputs(batch, 0.9, seed=1).noise[0], noise)
    twice = joined(["a"], segment(["a"]), segment(["a"], part="other"))
    first, second = noisy_inputs(twice, 0.5, seed=1).noise
    assert not torch.equal(first, second)


def test_a_sample_meets_the_same_noise_in_any_batch_and_with_any_padding():
    whole = noisy_inputs(next(batches(5, 5)), 0.4, seed=3).noise[0]
    single = torch.cat([noisy_inputs(batch, 0.4, seed=3).noise[0] for batch in batches(5, 1)])
    assert torch.equal(whole, single)
    keys = ["sample0", "sample1"]
    valid = torch.zeros(2, 50, dtype=torch.bool)
    valid[0, :6], valid[1, 44:] = True, True
    padded = noisy_inputs(joined(keys, segment(keys, tokens=50, valid=valid)), 0.4, seed=3).noise[0]
    assert torch.equal(padded[0, :6], whole[0])
    assert torch.equal(padded[1, 44:], whole[1])
    assert padded[~valid].abs().max() == 0


def test_given_tokens_are_clean_and_their_level_is_zero():
    conditioning_mask = torch.zeros(1, 6, dtype=torch.bool)
    conditioning_mask[:, 2] = True
    batch = joined(["a"], segment(["a"], conditioning_mask=conditioning_mask), segment(["a"], "action", tokens=2))
    noisy, noise, levels = noisy_inputs(batch, 0.8, seed=1)
    assert levels.per_token(8)[0].tolist() == pytest.approx([0.8, 0.8, 0, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert torch.equal(noisy[0][0, 2], batch.segments[0].x0[0, 2])
    torch.testing.assert_close(noisy[1], 0.2 * batch.segments[1].x0 + 0.8 * noise[1], atol=1e-6, rtol=0)


def test_mistakes_are_named():
    (batch,) = batches(2, 2)
    with pytest.raises(DataError, match=r"timestep 1\.5 must lie in \[0, 1\]"):
        noisy_inputs(batch, 1.5, seed=0)
    with pytest.raises(ShapeError, match="keys: empty"):
        noisy_inputs(TokenBatch(batch.segments, batch.context), 0.5, seed=0)
