"""The DDT trunk: levels per token, separation, positions, taps, initialization, and what a batch may be."""

from dataclasses import replace

import pytest
import torch

import core.trunk.ddt_blocks as blocks
from core.errors import ConfigError, ShapeError
from core.keys import generator
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch

SMALL = {
    "width": 16,
    "depth": 3,
    "heads": 2,
    "head_width": 24,
    "head_depth": 2,
    "head_heads": 3,
    "grid": 4,
    "channels": 5,
    "num_classes": 6,
}


def random_trunk(projectors=None, **changes):
    trunk = DDT(DDTConfig(**SMALL | changes), projectors=projectors or {}).eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # the zero ones would hide everything
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.12 + ("norm" in name))
    return trunk


def example(samples=2, tokens=16, channels=5, dtype=torch.float32, **segment):
    draw = generator("example")
    ids = torch.tensor([[[0, i // 4, i % 4] for i in range(tokens)]])
    x = torch.randn(samples, tokens, channels, generator=draw).to(dtype)
    context = Context(torch.zeros(samples, dtype=torch.bool), torch.arange(samples) % 5)
    batch = TokenBatch((Segment("image", x, ids, **segment),), context)
    levels = NoiseLevels(torch.rand(samples, 2, generator=draw), torch.randint(2, (samples, tokens), generator=draw))
    return (x,), levels, batch


def test_the_same_levels_in_three_forms_agree():
    """One level for all, two with an index that picks the second, and one per token: K is 1, 2 and N."""
    (x,), _, batch = example(dtype=torch.float64)
    t = torch.tensor([0.3, 0.8])
    forms = [
        NoiseLevels(t[:, None]),
        NoiseLevels(torch.stack([t, 1 - t], dim=1)),  # without an index the second level is nobody's
        NoiseLevels(torch.stack([1 - t, t], dim=1), torch.ones(2, 16, dtype=torch.long)),
        NoiseLevels(t[:, None].expand(-1, 16).contiguous(), torch.arange(16).expand(2, -1)),
    ]
    trunk = random_trunk().double()
    with torch.no_grad():
        first, *others = (trunk((x,), levels, batch).velocity[0] for levels in forms)
    for other in others:
        torch.testing.assert_close(first, other, atol=1e-12, rtol=0)


def test_two_levels_are_those_of_each_token():
    """Dual levels against one row per token, values and gradients in float64."""
    trunk = random_trunk().double()
    (x,), levels, batch = example(dtype=torch.float64)
    each = NoiseLevels(levels.per_token(16), torch.arange(16).expand(2, -1))
    weights = torch.randn(2, 16, 5, generator=generator("weights"), dtype=torch.float64)
    found = []
    for form in (levels, each):
        trunk.zero_grad()
        (velocity,) = trunk((x,), form, batch).velocity
        (velocity * weights).sum().backward()
        found.append((velocity.detach(), {name: p.grad.clone() for name, p in trunk.named_parameters()}))
    (dual, dual_gradients), (reference, gradients) = found
    torch.testing.assert_close(dual, reference, atol=1e-12, rtol=0)
    torch.testing.assert_close(dual_gradients, gradients, atol=1e-11, rtol=1e-10)
    swapped = replace(levels, index=1 - levels.index)
    assert not torch.allclose(trunk((x,), swapped, batch).velocity[0], dual, atol=1e-2)


def test_the_head_itself_knows_each_tokens_level():
    """Without any trace of time in the encoder, the velocity still depends on a token's own level alone."""
    trunk = random_trunk(pos_embed=False)
    with torch.no_grad():
        for block in trunk.blocks[: trunk.depth]:
            block.adaLN_modulation["1"].weight.zero_()
        for block in trunk.blocks[trunk.depth :]:
            block.attn.proj.weight.zero_()  # nothing passes between tokens of the head
        (x,), levels, batch = example()
        moved = NoiseLevels(levels.values + torch.tensor([0.0, 0.1]), levels.index)
        change = (trunk((x,), moved, batch).velocity[0] - trunk((x,), levels, batch).velocity[0]).abs().amax(-1)
    assert bool(((change > 1e-3) == (levels.index == 1)).all())


def masked_attend(same_level):
    """Attention that lets a token look at tokens of its own level, by a mask and without any reordering."""

    def attend(q, k, v, key_mask, groups=None):
        scores = torch.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~same_level[:, None], float("-inf")).softmax(dim=-1)
        return torch.einsum("bhqk,bkhc->bqhc", scores, v).flatten(2)

    return attend


@pytest.mark.parametrize("sizes", [(6, 10), (16, 0), (3, 4, 9)])
def test_separation_is_attention_within_a_level(monkeypatch, sizes):
    (x,), _, batch = example(dtype=torch.float64)
    row = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    index = torch.stack([row[torch.randperm(16, generator=generator("order", i))] for i in range(2)])
    values = torch.rand(2, len(sizes), generator=generator("values"))
    trunk, feature_layers = (
        random_trunk({TEACHER: ProjectorSpec()}).double(),
        FeatureLayers(raw=(1, 3), projected={TEACHER: 2}),
    )
    with torch.no_grad():
        separate = trunk((x,), NoiseLevels(values, index, sizes), batch, feature_layers)
        joint = trunk((x,), NoiseLevels(values, index), batch, feature_layers)
        monkeypatch.setattr(blocks, "attend", masked_attend(index[:, :, None] == index[:, None]))
        masked = trunk((x,), NoiseLevels(values, index), batch, feature_layers)
    torch.testing.assert_close(separate.velocity[0], masked.velocity[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(separate.raw, masked.raw, atol=1e-12, rtol=0)
    torch.testing.assert_close(separate.projected, masked.projected, atol=1e-12, rtol=0)
    assert torch.allclose(joint.velocity[0], masked.velocity[0], atol=1e-3) == (0 in sizes)


def test_permuting_tokens_with_their_positions_permutes_the_output():
    (x,), levels, batch = example()
    order = torch.stack([torch.randperm(16, generator=generator("order", i)) for i in range(2)])  # (B, N)
    segment, rows = batch.segments[0], torch.arange(2)[:, None]
    ids = segment.ids.expand(2, -1, -1)[rows, order]
    moved_batch = TokenBatch((Segment("image", x[rows, order], ids),), batch.context)
    moved_levels = NoiseLevels(levels.values, levels.index.gather(1, order))
    for trunk in (random_trunk(), random_trunk(pos_embed=False)):  # both kinds of positions, and the rotary ones alone
        with torch.no_grad():
            straight = trunk((x,), levels, batch, FeatureLayers(raw=(2,)))
            moved = trunk((x[rows, order],), moved_levels, moved_batch, FeatureLayers(raw=(2,)))
            unmoved_ids = trunk((x[rows, order],), moved_levels, batch)
        torch.testing.assert_close(moved.velocity[0], straight.velocity[0][rows, order], atol=1e-5, rtol=0)
        torch.testing.assert_close(moved.raw[2], straight.raw[2][rows, order], atol=1e-5, rtol=0)
        assert not torch.allclose(unmoved_ids.velocity[0], moved.velocity[0], atol=1e-2)


def test_rotary_scores_depend_on_differences_of_positions():
    """Shifting all tokens by a row and a column leaves every score; the two axes are not the same."""
    table = blocks.RotaryTable(8, grid=6).double()
    table.reset()
    q, k = torch.randn(2, 1, 3, 2, 8, generator=generator("q, k"), dtype=torch.float64)
    places = torch.tensor([[0, 9, 19]])  # (h, w): (0, 0), (1, 3), (3, 1)

    def scores(offset):
        rotation = table(places + offset)
        return torch.einsum("bqhc,bkhc->bhqk", blocks.rotate_pairs(q, rotation), blocks.rotate_pairs(k, rotation))

    torch.testing.assert_close(scores(2 * 6 + 2), scores(0), atol=1e-6, rtol=0)  # the table's angles are float32
    mirrored = table(torch.tensor([[0, 19, 9]]))
    found = torch.einsum("bqhc,bkhc->bhqk", blocks.rotate_pairs(q, mirrored), blocks.rotate_pairs(k, mirrored))
    assert not torch.allclose(found, scores(0), atol=1e-2)


@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": True}, {"swiglu": False, "rmsnorm": False, "qk_norm": True, "pos_embed": False}]
)
def test_gradients_reach_every_parameter_with_two_levels(changes):
    inputs = example()
    trunk = random_trunk({TEACHER: ProjectorSpec(), "dino": ProjectorSpec("repa", 7)}, **changes).train()
    output = trunk(*inputs, FeatureLayers(projected={TEACHER: 2, "dino": 1}))
    losses = (output.velocity[0], *output.projected.values())
    sum(loss.square().mean() for loss in losses).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trunk.parameters())
    frozen = dict(trunk.named_buffers())
    assert not any(value.requires_grad for value in frozen.values())
    assert "t_embedder.W" in frozen


def test_taps_count_the_encoders_blocks():
    trunk, inputs = random_trunk({TEACHER: ProjectorSpec(), "dino": ProjectorSpec("repa", 7)}), example()
    assert (trunk.depth, trunk.width) == (3, 16)
    feature_layers = FeatureLayers(raw=(1, 3), projected={TEACHER: 3, "dino": 2})
    with torch.no_grad():
        full = trunk(*inputs, feature_layers)
        stopped = trunk(*inputs, replace(feature_layers, stop_after=3))
        assert torch.equal(full.projected[TEACHER], trunk.projector(full.raw[3]))
    assert stopped.velocity is None
    assert all(torch.equal(stopped.raw[layer], full.raw[layer]) for layer in (1, 3))
    assert full.raw[3].shape == full.projected[TEACHER].shape == (2, 16, 16)
    assert full.projected["dino"].shape == (2, 16, 7)
    for layer in (0, 4):  # the head's blocks are not layers
        with pytest.raises(ConfigError, match=f"layer {layer}"):
            trunk(*inputs, FeatureLayers(raw=(layer,)))


def test_an_early_stop_runs_no_block_after_it():
    trunk, inputs = random_trunk(), example()
    ran = []
    for number, block in enumerate(trunk.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    trunk(*inputs, FeatureLayers(raw=(2,), stop_after=2))
    assert ran == [1, 2]
    ran.clear()
    trunk(*inputs)
    assert ran == [1, 2, 3, 4, 5]


def test_dropped_condition_is_the_null_class():
    noisy, levels, batch = example()
    trunk = random_trunk()

    def velocity(dropped, label):
        context = Context(torch.tensor(dropped), torch.tensor(label))
        return trunk(noisy, levels, replace(batch, context=context)).velocity[0]

    with torch.no_grad():
        assert torch.equal(velocity([True, False], [0, 1]), velocity([False, False], [5, 1]))
        assert not torch.allclose(velocity([False, False], [0, 1]), velocity([False, False], [5, 1]), atol=1e-3)


def test_initialization_is_that_of_the_published_code():
    config = DDTConfig(**SMALL | {"width": 64, "head_width": 96, "channels": 32})
    trunk = DDT(config, seed=1, projectors={TEACHER: ProjectorSpec()})
    state = trunk.state_dict()
    zero = {n for n, v in state.items() if not v.any()}
    embedders = {"x_embedder.proj.bias", "s_embedder.proj.bias", "projector.linear1.bias", "projector.linear2.bias"}
    heads = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert zero == embedders | heads | {name for name in state if "adaLN" in name}
    assert all(bool((value == 1).all()) for name, value in state.items() if "norm" in name)
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert float(state[name].std()) == pytest.approx(0.02, rel=0.15)
    assert float(state["t_embedder.W"].std()) == pytest.approx(1, rel=0.15)
    bounds = {  # PyTorch's default, uniform within 1 / sqrt(inputs), but Xavier's for the embedding of tokens
        "blocks.0.attn.qkv.weight": 64**-0.5,
        "blocks.0.attn.qkv.bias": 64**-0.5,
        "blocks.4.mlp.w12.weight": 96**-0.5,
        "s_projector.weight": 64**-0.5,
        "t_embedder.mlp.0.bias": 512**-0.5,
        "x_embedder.proj.weight": (6 / (32 + 96)) ** 0.5,
    }
    for name, bound in bounds.items():
        assert 0.9 * bound < float(state[name].abs().max()) <= bound
        assert float(state[name].std()) == pytest.approx(bound / 3**0.5, rel=0.15)
    noisy, levels, batch = example(channels=32)
    assert not trunk(noisy, levels, batch).velocity[0].any()
    other = DDT(config, seed=2).state_dict()
    for name in ("t_embedder.W", "blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"):
        assert not torch.equal(other[name], state[name])
    assert torch.equal(other["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("changes", [{}, {"rmsnorm": False, "qk_norm": True, "pos_embed": False}, {"qk_norm": True}])
def test_initialization_from_the_meta_device(changes):
    config, projectors = DDTConfig(**SMALL | changes), {TEACHER: ProjectorSpec(), "dino": ProjectorSpec("repa", 7)}
    with torch.device("meta"):
        trunk = DDT(config, projectors=projectors)
    trunk = trunk.to_empty(device="cpu")
    for value in trunk.state_dict().values():
        value.fill_(7.0)  # whatever was in that memory
    trunk.reset(seed=4)
    expected = DDT(config, seed=4, projectors=projectors).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trunk.state_dict().items())


@pytest.mark.filterwarnings("error::UserWarning")  # a mismatch of dtypes would warn that a kernel is not fused
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"qk_norm": True, "rmsnorm": False}])
def test_half_precision_weights_give_a_float32_velocity(changes):
    inputs = example()
    trunk = random_trunk(**changes)
    with torch.no_grad():
        expected = trunk(*inputs).velocity[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = trunk(*inputs).velocity[0]
        half = trunk.bfloat16()(*inputs).velocity[0]
    for found in (half, mixed):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)  # of outputs around 0.6


@pytest.mark.slow
def test_whole_forward_is_one_graph():
    """torch.compile without a break in the graph (no C compiler is needed to see that)."""
    trunk, inputs = random_trunk(), example()
    compiled = torch.compile(trunk, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs).velocity[0], trunk(*inputs).velocity[0])


def test_batches_of_another_kind_are_refused():
    trunk = random_trunk()
    noisy, levels, batch = example()
    segment = batch.segments[0]
    with pytest.raises(ShapeError, match="exactly one segment"):
        trunk(noisy * 2, levels, TokenBatch((segment, replace(segment, part="other")), batch.context))
    with pytest.raises(ShapeError, match=r"expected \(2, 16, 5\), got \(2, 16, 3\)"):
        trunk((noisy[0][..., :3],), levels, batch)
    with pytest.raises(ShapeError, match=r"Context\.label"):
        trunk(noisy, levels, TokenBatch(batch.segments, Context(batch.context.dropped)))
    outside = TokenBatch((Segment("image", segment.x0, segment.ids + 1),), batch.context)
    with pytest.raises(ShapeError, match=r"\[4, 4\] outside grid 4"):
        trunk(noisy, levels, outside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "XXL"}, "Did you mean"),
        ({"width": 18, "heads": 4}, "width: 18 is not a multiple"),
        ({"head_width": 25}, "head_width: 25 is not a multiple"),
        ({"width": 12}, "heads of 6 channels"),
        ({"head_width": 18}, "heads of 6 channels"),
        ({"num_classes": 1}, "null class"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"depth": 0}, "depth: 0"),
        ({"head_depth": 0}, "head_depth: 0"),
        ({"channels": 0}, "channels: 0"),
    ],
)
def test_config_problems(change, message):
    assert any(message in problem for problem in DDTConfig(**SMALL | change).problems())
    with pytest.raises(ConfigError):
        DDT(DDTConfig(**SMALL | change))
