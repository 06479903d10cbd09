"""The trunk against the published model: outputs, features and intermediate values with the same weights."""

import hashlib

import pytest
import torch

from core.trunk.class_conditional import sincos_table
from core.trunk.layers import sinusoid
from core.types import FeatureLayers, NoiseLevels
from tests.parity.common import golden, golden_json, image_batch, tiny_trunk, worst

FORWARD = golden("forward")


def levels_of(kind):
    if kind == "scalar_t":
        return NoiseLevels(FORWARD["t"][:, None])
    if kind == "dual_t":
        return NoiseLevels(torch.stack([FORWARD["t"], FORWARD["s2"]], dim=1), FORWARD["mask"].long())
    return NoiseLevels(FORWARD["tau"], torch.arange(16).expand(3, -1))


def run(kind, feature_layers=FeatureLayers(), trunk=None):  # noqa: B008
    with torch.no_grad():
        return (trunk or tiny_trunk())(
            (FORWARD["x"],), levels_of(kind), image_batch(FORWARD["x"], FORWARD["y"]), feature_layers
        )


@pytest.mark.parametrize("kind", ["scalar_t", "per_token_t", "dual_t"])
def test_velocity(kind):
    (velocity,) = run(kind).velocity
    assert worst(velocity, FORWARD[f"out_{kind}"]) < 1e-5  # worst seen 1.9e-6


def test_levels_of_the_dual_golden_value_are_those_of_its_mask():
    assert torch.equal(levels_of("dual_t").per_token(16), FORWARD["tau_dual"])


def test_velocity_in_float64_is_closer():
    """Against the float64 run of the published model, whose time features stay float32 like ours."""
    (velocity,) = run("dual_t", trunk=tiny_trunk().double()).velocity
    assert velocity.dtype == torch.float64
    assert worst(velocity, FORWARD["out_dual_t_float64"]) < 1e-7  # worst seen 1.2e-8


def test_positions_come_from_the_weights():
    trunk = tiny_trunk()
    trunk.pos_embed.copy_(FORWARD["pos_embed_rand"])
    (velocity,) = run("scalar_t", trunk=trunk).velocity
    assert worst(velocity, FORWARD["out_scalar_t_pos_rand"]) < 1e-5  # worst seen 1.8e-6


@pytest.mark.parametrize("kind", ["dual_t", "per_token_t"])
def test_projected_features(kind):
    output = run(kind, FeatureLayers(projected={"teacher": 2}))
    assert worst(output.projected["teacher"], FORWARD[f"features_layer2_projected_{kind}"]) < 1e-5  # worst seen 9.6e-7
    assert not output.raw


@pytest.mark.parametrize("kind", ["scalar_t", "per_token_t"])
def test_raw_features_and_early_stop(kind):
    output = run(kind, FeatureLayers(raw=(3,), stop_after=3))
    assert worst(output.raw[3], FORWARD[f"features_layer3_raw_{kind}"]) < 1e-5  # worst seen 2.4e-6
    assert output.velocity is None


def test_every_stage_of_the_network():
    trunk = tiny_trunk()
    t, x = FORWARD["t"][:, None], FORWARD["x"]
    with torch.no_grad():
        assert worst(sinusoid(1 - t, 256)[:, 0], FORWARD["mid_t_freq_scalar"]) < 1e-6
        assert worst(trunk.t_embedder(1 - t)[:, 0], FORWARD["mid_t_embed_scalar"]) < 1e-6
        assert worst(trunk.y_embedder["embedding_table"](FORWARD["y"]), FORWARD["mid_y_embed"]) == 0
        assert worst(trunk.x_embedder["proj"](x) + trunk.pos_embed, FORWARD["mid_x_embed"]) < 1e-6
        heads = []
        trunk.final_layer.linear.register_forward_hook(lambda module, conditioning_mask, out: heads.append(out))
        output = run("scalar_t", FeatureLayers(raw=(1, 2, 3, 4)), trunk)
    for layer in (1, 2, 3, 4):
        assert worst(output.raw[layer], FORWARD[f"mid_block{layer}_scalar_t"]) < 1e-5  # worst seen 2.4e-6
    assert worst(heads[0], FORWARD["mid_final_raw_scalar_t"]) < 1e-5


def test_channel_order_of_the_head():
    values = golden("patchify")
    ours = tiny_trunk()._unshuffle(values["shuffle_in"])
    assert torch.equal(ours, values["shuffle_out_first_half"])


def test_dropped_condition_is_the_null_class():
    x, y = FORWARD["x"], FORWARD["y"]
    trunk, levels = tiny_trunk(), NoiseLevels(FORWARD["t"][:, None])
    with torch.no_grad():
        dropped = trunk((x,), levels, image_batch(x, y, torch.tensor([True, False, True]))).velocity[0]
        replaced = trunk((x,), levels, image_batch(x, torch.stack([y.new_tensor(10), y[1], y.new_tensor(10)])))
    assert torch.equal(dropped, replaced.velocity[0])
    assert not torch.equal(dropped, run("scalar_t").velocity[0])


@pytest.mark.parametrize("name", ["64x4", "384x16", "768x16", "1152x16"])
def test_position_table_is_bit_equal(name):
    width, grid = (int(part) for part in name.split("x"))
    expected = golden_json("pos_embed_spots")[name]
    table = sincos_table(width, grid)[0].numpy()
    for row, values in expected["rows"].items():
        assert table[int(row)][:: width // 16].tolist() == values
    assert hashlib.sha256(table.tobytes()).hexdigest() == expected["sha256_float32"]
