"""The SiT trunk: what a batch may be, positions that travel with tokens, initialization, levels, compilation."""

from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError, ShapeError
from core.keys import generator
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch

SMALL = {"width": 32, "depth": 3, "heads": 2, "grid": 4, "num_classes": 6}
HEADS = {"teacher": ProjectorSpec()}


def random_trunk(projectors=HEADS, **changes):
    trunk = SiT(SiTConfig(**SMALL | changes), projectors=projectors).eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # the zero ones would hide everything
            parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.2)
    return trunk


def example(samples=2, tokens=16, dtype=torch.float32, **segment):
    draw = generator("example")
    ids = torch.tensor([[[0, i // 4, i % 4] for i in range(tokens)]])
    x = torch.randn(samples, tokens, 16, generator=draw).to(dtype)
    context = Context(torch.zeros(samples, dtype=torch.bool), torch.arange(samples) % 5)
    batch = TokenBatch((Segment("image", x, ids, **segment),), context)
    levels = NoiseLevels(torch.rand(samples, 2, generator=draw), torch.randint(2, (samples, tokens), generator=draw))
    return (x,), levels, batch


def test_permuting_tokens_with_their_positions_permutes_the_output():
    (x,), levels, batch = example()
    order = torch.stack([torch.randperm(16, generator=generator("order", i)) for i in range(2)])  # (B, N)
    segment, rows = batch.segments[0], torch.arange(2)[:, None]
    ids = segment.ids.expand(2, -1, -1)[rows, order]
    moved_batch = TokenBatch((Segment("image", x[rows, order], ids),), batch.context)
    moved_levels = NoiseLevels(levels.values, levels.index.gather(1, order))
    trunk, feature_layers = random_trunk(), FeatureLayers(raw=(2,), projected={"teacher": 1})
    with torch.no_grad():
        straight = trunk((x,), levels, batch, feature_layers)
        moved = trunk((x[rows, order],), moved_levels, moved_batch, feature_layers)
        unmoved_ids = trunk((x[rows, order],), moved_levels, batch, feature_layers)
    torch.testing.assert_close(moved.velocity[0], straight.velocity[0][rows, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.raw[2], straight.raw[2][rows, order], atol=1e-5, rtol=0)
    assert not torch.allclose(unmoved_ids.velocity[0], moved.velocity[0], atol=1e-2)


def test_the_same_levels_in_three_forms_agree():
    """One level for all, two with an index, and one per token: K is 1, 2 and N."""
    (x,), _, batch = example()
    t = torch.tensor([0.3, 0.8])
    forms = [
        NoiseLevels(t[:, None]),
        NoiseLevels(torch.stack([1 - t, t], dim=1), torch.ones(2, 16, dtype=torch.long)),
        NoiseLevels(t[:, None].expand(-1, 16).contiguous(), torch.arange(16).expand(2, -1)),
    ]
    trunk = random_trunk()
    with torch.no_grad():
        one, two, many = (trunk((x,), levels, batch).velocity[0] for levels in forms)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter_with_two_levels():
    inputs = example()
    trunk = random_trunk().train()
    output = trunk(*inputs, FeatureLayers(projected={"teacher": 2}))
    (output.velocity[0].square().mean() + output.projected["teacher"].square().mean()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trunk.parameters())


def test_initialization_is_that_of_dit():
    trunk = SiT(SiTConfig(**SMALL), seed=1)
    state = trunk.state_dict()
    assert all(not v.any() for n, v in state.items() if "adaLN" in n or "final_layer" in n or n.endswith("bias"))
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert float(state[name].std()) == pytest.approx(0.02, rel=0.15)
    bound = (6 / (32 + 96)) ** 0.5
    assert 0.9 * bound < float(state["blocks.1.attn.qkv.weight"].abs().max()) <= bound
    assert not SiT(SiTConfig(**SMALL), seed=1)(*example()).velocity[0].any()
    other = SiT(SiTConfig(**SMALL), seed=2).state_dict()
    assert not torch.equal(other["x_embedder.proj.weight"], state["x_embedder.proj.weight"])
    assert torch.equal(other["pos_embed"], state["pos_embed"])
    assert "pos_embed" not in dict(trunk.named_parameters())  # kept, but not trained


def test_initialization_from_the_meta_device():
    with torch.device("meta"):
        trunk = SiT(SiTConfig(**SMALL))
    trunk = trunk.to_empty(device="cpu")
    trunk.reset(seed=4)
    expected = SiT(SiTConfig(**SMALL), seed=4).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trunk.state_dict().items())


def test_half_precision_weights_give_a_float32_velocity():
    inputs = example()
    trunk = random_trunk()
    with torch.no_grad():
        expected = trunk(*inputs).velocity[0]
        half = trunk.bfloat16()(*inputs).velocity[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = random_trunk()(*inputs).velocity[0]
    for found in (half, mixed):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=0.15, rtol=0)


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
    with pytest.raises(ShapeError, match=r"expected \(2, 16, 16\), got \(2, 16, 8\)"):
        trunk((noisy[0][..., :8],), levels, batch)
    with pytest.raises(ShapeError, match=r"Context\.label"):
        trunk(noisy, levels, TokenBatch(batch.segments, Context(batch.context.dropped)))
    outside = TokenBatch((Segment("image", segment.x0, segment.ids + 1),), batch.context)
    with pytest.raises(ShapeError, match=r"\[4, 4\] outside grid 4"):
        trunk(noisy, levels, outside)


def test_taps_are_checked():
    with pytest.raises(ConfigError, match="layer 4"):
        random_trunk()(*example(), FeatureLayers(raw=(4,)))
    with pytest.raises(ConfigError, match="projector 'teacher' is not one of the trunk's: none"):
        random_trunk(projectors={})(*example(), FeatureLayers(projected={"teacher": 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "XXL"}, "Did you mean"),
        ({"width": 30, "heads": 4}, "not a multiple of heads"),
        ({"width": 30, "heads": 2}, "multiple of 4"),
        ({"channels": 6}, "patch"),
        ({"num_classes": 1}, "null class"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"depth": 0}, "depth: 0"),
    ],
)
def test_config_problems(change, message):
    assert any(message in problem for problem in SiTConfig(**SMALL | change).problems())
    with pytest.raises(ConfigError):
        SiT(SiTConfig(**SMALL | change))


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_published_sizes(size, millions):
    """Counted as the DiT and SiT papers do: with positions, without a projector."""
    with torch.device("meta"):
        trunk = SiT(SiTConfig(size=size))
    assert sum(value.numel() for value in trunk.state_dict().values()) / 1e6 == pytest.approx(millions, abs=0.6)


def test_projector_of_the_released_model():
    with torch.device("meta"):
        trunk = SiT(SiTConfig(), projectors=HEADS)
    assert sum(p.numel() for p in trunk.projector.parameters()) == 5_311_872
