"""Attention separation: both trunks against what it stands for, a mask of all pairs or a sample for every group."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from core.keys import generator
from core.trunk import sit
from core.trunk.context import ContextConfig
from core.trunk.separation import token_order
from core.types import Context, FeatureLayers, NoiseLevels, TokenBatch, map_tensors
from tests.core import test_mmdit as multimodal
from tests.core.test_sit import example, random_trunk

GROUPS = [(4, 12), (9, 4, 3), (16, 0)]


def separated(sizes, samples):
    """Levels that a fixed number of tokens has, in an order of each sample's own."""
    length = sum(sizes)
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    index = torch.stack([level[torch.randperm(length, generator=generator("order", i))] for i in range(samples)])
    return NoiseLevels(torch.rand(samples, len(sizes), generator=generator("levels")), index, sizes)


def run(net, noisy, levels, batch, feature_layers):
    """Every output by name, each (B, L, ...); velocities are padded to 16 channels, to lie in one tensor."""
    output = net(noisy, levels, batch, feature_layers)
    features = {**output.raw, **output.projected}
    if output.velocity is not None:
        features |= {"velocity": torch.cat([F.pad(v, (0, 16 - v.shape[-1])) for v in output.velocity], dim=1)}
    return features


def gradients_of(outputs, leaves):
    """By a loss that weighs every number differently; all of them are felt."""
    weights = {k: torch.randn(v.shape, generator=generator("loss", k), dtype=v.dtype) for k, v in outputs.items()}
    gradients = torch.autograd.grad(sum((outputs[name] * weights[name]).sum() for name in outputs), leaves)
    assert all(bool(gradient.any()) for gradient in gradients)
    return dict(enumerate(gradients))


def assert_equal(found, wanted, tolerance=1e-11):
    """Tolerance is relative to the largest number of a tensor, absolute below 1."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(1.0, float(value.detach().abs().max()))
        torch.testing.assert_close(found[name], value, atol=tolerance * scale, rtol=0)


def test_the_order_sorts_by_level_and_comes_back():
    levels = separated((3, 1, 2), samples=4)
    order = token_order(levels)
    assert order.index.tolist() == [[0, 0, 0, 1, 2, 2]] * 4
    assert torch.equal(order.sort(levels.index), order.index)
    tokens = torch.randn(4, 6, 2, 5)
    assert torch.equal(order.restore(order.sort(tokens)), tokens)
    shared = torch.arange(6)[None, :, None]  # (1, L, 1): the same for all samples
    assert torch.equal(order.sort(shared)[..., 0], order.forward)


def test_without_separation_tokens_stay_where_they_are():
    levels = replace(separated((3, 3), samples=2), separate=None)
    order, tokens = token_order(levels), torch.randn(2, 6, 4)
    assert order.index is levels.index
    assert order.sort(tokens) is tokens
    assert order.restore(tokens) is tokens


# SiT: one sequence without text, so that separation is a mask of all pairs.


@pytest.mark.parametrize("sizes", GROUPS)
def test_sit_equals_a_mask_of_all_pairs(sizes, monkeypatch):
    """The reference leaves the tokens in their order, and writes the masked softmax out."""
    net = random_trunk().double()
    (x,), _, batch = example(samples=3)
    x = x.double().requires_grad_()
    levels, feature_layers = separated(sizes, samples=3), FeatureLayers(raw=(1, 3), projected={"teacher": 2})
    found = run(net, (x,), levels, batch, feature_layers)

    same = levels.index[:, :, None] == levels.index[:, None, :]  # (B, N, N)

    def masked(q, k, v, key_mask, groups):
        assert groups is None
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~same[:, None], float("-inf")).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)

    monkeypatch.setattr(sit, "attend", masked)
    wanted = run(net, (x,), replace(levels, separate=None), batch, feature_layers)
    assert_equal(found, wanted)
    leaves = [*net.parameters(), x]
    assert_equal(gradients_of(found, leaves), gradients_of(wanted, leaves))


@torch.no_grad()
def test_sit_groups_do_not_see_each_other():
    net, levels = random_trunk(), separated((4, 12), samples=2)
    (x,), _, batch = example()
    first = (levels.index == 0)[..., None]
    before, after = (net((noisy,), levels, batch).velocity[0] for noisy in (x, torch.where(first, x, x + 3)))
    torch.testing.assert_close(before * first, after * first, atol=1e-6, rtol=0)
    mixed = replace(levels, separate=None)
    assert not torch.allclose(net((x,), mixed, batch).velocity[0], before, atol=1e-2)


# MMDiT: every group has text of its own, at its own level, so that a group is a sample of its own.


def alone(noisy, batch, levels, sample, group):
    """The tokens of one group of one sample as a batch of one: (noisy, levels, batch)."""
    row = slice(sample, sample + 1)
    parts, segments = [], []
    for x, segment, index in zip(noisy, batch.segments, levels.index.split(batch.lengths, dim=1), strict=True):
        mine = index[sample] == group
        if mine.any():
            whole = replace(segment, ids=segment.ids.expand(batch.size, -1, -1))
            parts.append(x[row, mine])
            segments.append(map_tensors(whole, lambda tensor, mine=mine: tensor[row, mine]))
    context = map_tensors(batch.context, lambda tensor: tensor[row])
    return tuple(parts), NoiseLevels(levels.values[row, group : group + 1]), TokenBatch(tuple(segments), context)


def put_together(net, noisy, levels, batch, feature_layers):
    """The same as `run`, with every group of every sample run alone."""
    samples = []
    for sample in range(batch.size):
        filled = {}
        for group in levels.index[sample].unique():
            parts, level, one = alone(noisy, batch, levels, sample, group)
            for name, value in run(net, parts, level, one, feature_layers).items():
                empty = filled.get(name, value.new_zeros(levels.index.shape[1], value.shape[-1]))
                filled[name] = empty.index_put((levels.index[sample] == group,), value[0])
        samples.append(filled)
    return {name: torch.stack([filled[name] for filled in samples]) for name in samples[0]}


@pytest.mark.parametrize("kind", ["text", "text and padded media", "labels"])
@pytest.mark.parametrize("sizes", [(7, 4), (6, 3, 2), (11, 0)])
def test_mmdit_equals_every_group_as_its_own_sample(sizes, kind):
    """Values and gradients. Text has padding, labels are a text of one token without a mask."""
    noisy, batch = multimodal.two_segments(padded="padded" in kind)
    net = multimodal.trunk()
    if kind == "labels":
        net = multimodal.trunk(context=ContextConfig(kind="labels", num_classes=4))
        batch = replace(batch, context=Context(torch.tensor([False, True, False]), label=torch.tensor([1, 2, 3])))
    levels, feature_layers = separated(sizes, samples=multimodal.B), FeatureLayers(raw=(2, 4), projected={"teacher": 3})
    leaves = [*net.parameters(), *(x.requires_grad_() for x in noisy)]
    found, wanted = (function(net, noisy, levels, batch, feature_layers) for function in (run, put_together))
    assert found.keys() == {2, 4, "teacher", "velocity"}
    assert_equal(found, wanted)
    assert_equal(gradients_of(found, leaves), gradients_of(wanted, leaves))


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3, 5])
def test_mmdit_early_stop_gives_the_callers_order(layer):
    net, (noisy, batch) = multimodal.trunk(), multimodal.two_segments()
    levels = separated((7, 4), samples=multimodal.B)
    feature_layers = FeatureLayers(raw=(layer,), projected={"teacher": layer}, stop_after=layer)
    found = run(net, noisy, levels, batch, feature_layers)
    assert found.keys() == {layer, "teacher"}
    assert_equal(found, put_together(net, noisy, levels, batch, feature_layers))


@torch.no_grad()
@pytest.mark.parametrize("trunk", ["sit", "mmdit"])
def test_separated_forward_is_one_graph(trunk):
    if trunk == "sit":
        (noisy, _, batch), net = example(), random_trunk()
    else:
        (noisy, batch), net = multimodal.two_segments(padded=True), multimodal.trunk()
    levels = separated((sum(batch.lengths) - 4, 4), samples=batch.size)
    feature_layers = FeatureLayers(raw=(1,), projected={"teacher": 3})
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_equal(
        run(compiled, noisy, levels, batch, feature_layers), run(net, noisy, levels, batch, feature_layers), 1e-6
    )
