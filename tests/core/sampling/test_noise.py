"""Keyed normals and the one level of inference, where the tests of their callers do not look."""

from __future__ import annotations

import torch

from core.keys import generator
from core.sampling.noise import keyed_normals, one_level
from tests.core.evaluation_batches import joined, segment


def test_normals_are_those_of_the_key():
    batch = joined(["a", "b"], segment(["a", "b"], tokens=5), segment(["a", "b"], "action", tokens=2))
    first, second = keyed_normals(batch, 4, "sde", 7)
    assert first.dtype == second.dtype == torch.float32
    wanted = torch.randn(first.shape[1:], generator=generator(4, "sde", "b", 7, 0, batch.segments[0].modality))
    assert torch.equal(first[1], wanted)
    wanted = torch.randn(second.shape[1:], generator=generator(4, "sde", "a", 7, 1, "action"))
    assert torch.equal(second[0], wanted)


def test_padding_is_0_and_changes_no_other_number():
    (plain,) = keyed_normals(joined(["a"], segment(["a"], tokens=20)), 4, "generate")
    valid = (torch.arange(60) % 3 == 1)[None]
    (padded,) = keyed_normals(joined(["a"], segment(["a"], tokens=60, valid=valid)), 4, "generate")
    assert torch.equal(padded[valid], plain[0])
    assert padded[~valid].eq(0).all()


def test_given_tokens_have_a_level_of_their_own():
    conditioning_mask = torch.tensor([[True, False, False], [False, False, True]])
    keys = ["a", "b"]
    batch = joined(
        keys, segment(keys, tokens=3, conditioning_mask=conditioning_mask), segment(keys, "action", tokens=2)
    )
    levels = one_level(batch, 0.75, 0.125, torch.float64)
    assert levels.values.dtype == torch.float64
    assert levels.per_token(5).tolist() == [[0.125, 0.75, 0.75, 0.75, 0.75], [0.75, 0.75, 0.125, 0.75, 0.75]]
    plain = one_level(joined(keys, segment(keys, tokens=3)), 0.75)
    assert plain.index is None
    assert plain.values.tolist() == [[0.75], [0.75]]
