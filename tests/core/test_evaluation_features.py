"""Features of blocks: what is pooled, in which order, and that batches do not matter."""

import pytest
import torch

from core.errors import ConfigError, DataError
from core.evaluation.features import block_features
from core.evaluation.inputs import noisy_inputs
from tests.core.evaluation_batches import KnownTrunk, batches, joined, segment, tiny_mmdit


def masked():
    keys = ["a", "b"]
    conditioning_mask = torch.zeros(2, 6, dtype=torch.bool)
    conditioning_mask[0, :2] = True
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 5] = False
    return joined(keys, segment(keys, conditioning_mask=conditioning_mask, valid=valid))


def test_pooling_over_counted_tokens_by_hand():
    batch, trunk = masked(), KnownTrunk()
    found = block_features(trunk, [batch], (3, 1), timestep=0.25, seed=4)
    noisy = noisy_inputs(batch, 0.25, 4).noisy[0]
    assert list(found) == [3, 1]
    for layer, rows in found.items():
        expected = torch.stack([layer * noisy[0, 2:].mean(0), layer * noisy[1, :5].mean(0)])
        torch.testing.assert_close(rows[:, :-1], expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rows[:, -1], torch.tensor([0.25, 0.25]))
    assert trunk.feature_layers[0].raw == (3, 1)
    assert trunk.feature_layers[0].stop_after == 3


def test_without_pooling_there_is_a_row_for_each_counted_token():
    batch = masked()
    noisy = noisy_inputs(batch, 0.25, 4).noisy[0]
    for pool in (None, "none"):
        found = block_features(KnownTrunk(), [batch, batch], [2], timestep=0.25, seed=4, pool=pool)[2]
        assert found.shape == (2 * 9, 5)
        assert torch.equal(found[:9, :-1], 2 * torch.cat([noisy[0, 2:], noisy[1, :5]]))
        assert torch.equal(found[:9], found[9:])


def test_a_real_trunk_in_batches_of_any_size():
    trunk = tiny_mmdit()
    one = block_features(trunk, batches(5, 1), (1, 4), timestep=0.1, seed=4)
    many = block_features(trunk, batches(5, 4), (1, 4), timestep=0.1, seed=4)
    for layer in (1, 4):
        assert one[layer].shape == (5, 128)
        assert not one[layer].requires_grad
        torch.testing.assert_close(one[layer], many[layer], atol=1e-5, rtol=1e-5)
    assert (one[1] - one[4]).abs().max() > 1e-3


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"pool: 'men' is not one of mean, none\. Did you mean: 'mean'"):
        block_features(KnownTrunk(), batches(2, 2), [1], timestep=0.1, seed=0, pool="men")
    with pytest.raises(DataError, match="no layers"):
        block_features(KnownTrunk(), batches(2, 2), [], timestep=0.1, seed=0)
    with pytest.raises(DataError, match="no batches"):
        block_features(KnownTrunk(), [], [1], timestep=0.1, seed=0)
    nothing = joined(["a"], segment(["a"], conditioning_mask=torch.ones(1, 6, dtype=torch.bool)))
    with pytest.raises(DataError, match="no token in the loss mask"):
        block_features(KnownTrunk(), [nothing], [1], timestep=0.1, seed=0)
