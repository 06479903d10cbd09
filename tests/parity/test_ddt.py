"""The DDT trunk against RAE's, with the same weights: velocity, features, times per token, and all switches."""

import json

import pytest
import torch
from safetensors import safe_open

from core.trunk.ddt import DDT, SIZES, DDTConfig
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch
from tests.parity.common import FIXTURES, golden, worst

PUBLISHED = golden("rae_ddt_tiny")
VARIANTS = golden("rae_ddt_variants")
TINY = DDTConfig(
    width=32, depth=2, heads=2, head_width=48, head_depth=1, head_heads=2, grid=4, channels=6, num_classes=11
)
SMALL = {"depth": 1, "heads": 2, "head_depth": 1, "grid": 3, "channels": 3, "num_classes": 4, "qk_norm": True}
SWITCHED = {
    "layernorm": DDTConfig(
        width=16, head_width=16, head_heads=2, swiglu=False, rmsnorm=False, pos_embed=False, **SMALL
    ),
    "rmsnorm": DDTConfig(width=16, head_width=24, head_heads=3, swiglu=False, **SMALL),
}


def published_state(values, prefix="param."):
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def load(config, state):
    trunk = DDT(config).eval()
    trunk.load_state_dict(state, strict=True)
    return trunk


def tokens(images):
    """(B, C, H, W) -> (B, N, C)."""
    return images.flatten(2).transpose(1, 2).contiguous()


def run(trunk, x, levels, label, feature_layers=FeatureLayers()):  # noqa: B008
    grid = trunk.config.grid
    ids = torch.tensor([[[0, i // grid, i % grid] for i in range(grid**2)]])
    batch = TokenBatch((Segment("image", x, ids),), Context(torch.zeros(len(x), dtype=torch.bool), label))
    with torch.no_grad():
        return trunk((x,), levels, batch, feature_layers)


def test_velocity():
    trunk = load(TINY, published_state(PUBLISHED))
    (velocity,) = run(trunk, tokens(PUBLISHED["x"]), NoiseLevels(PUBLISHED["t"][:, None]), PUBLISHED["y"]).velocity
    assert worst(velocity, tokens(PUBLISHED["out"])) < 1e-5  # worst seen 2.2e-6, outputs up to 3


def test_times_per_token_as_two_levels():
    """Recorded with RAE's own modules, given the time of every token in place of the sample's."""
    trunk = load(TINY, published_state(PUBLISHED))
    levels = NoiseLevels(VARIANTS["dual.levels"], VARIANTS["dual.index"])
    conditioning_mask = (tokens(PUBLISHED["x"]), levels, PUBLISHED["y"], FeatureLayers(raw=(1, 2)))
    output = run(trunk, *conditioning_mask)
    assert worst(output.velocity[0], VARIANTS["dual.out"]) < 1e-5
    for layer in (1, 2):
        assert worst(output.raw[layer], VARIANTS[f"dual.layer{layer}"]) < 1e-5
    (velocity,) = run(trunk.double(), *conditioning_mask).velocity
    assert velocity.dtype == torch.float64
    assert worst(velocity, VARIANTS["dual.out_float64"]) < 1e-6  # their RMSNorm stays float32


@pytest.mark.parametrize("name", SWITCHED)
def test_switches(name):
    trunk = load(SWITCHED[name], published_state(VARIANTS, f"{name}.param."))
    x, y, values = (VARIANTS[f"{name}.{part}"] for part in ("x", "y", "levels"))
    (scalar,) = run(trunk, x, NoiseLevels(values), y).velocity  # without an index all have the first level
    (dual,) = run(trunk, x, NoiseLevels(values, VARIANTS[f"{name}.index"]), y).velocity
    assert worst(scalar, VARIANTS[f"{name}.out_scalar"]) < 1e-5
    assert worst(dual, VARIANTS[f"{name}.out"]) < 1e-5


def test_state_dict_is_the_published_one():
    """Names, order-free, and shapes; and the tables in it are bit for bit what the config gives."""
    state = published_state(PUBLISHED)
    own = DDT(TINY).state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in state.items()}
    tables = ["pos_embed", *(name for name in own if "feat_rope" in name)]
    assert len(tables) == 5
    assert all(torch.equal(own[name], state[name]) for name in tables)


def test_config_of_the_fixture_is_the_published_kind():
    """The switches that the recorded model and all published ones share are the defaults."""
    with safe_open(FIXTURES / "rae_ddt_tiny.safetensors", "pt") as file:
        theirs = json.loads(file.metadata()["config"])
    ours = {
        "use_qknorm": TINY.qk_norm,
        "use_swiglu": TINY.swiglu,
        "use_rmsnorm": TINY.rmsnorm,
        "use_pos_embed": TINY.pos_embed,
        "mlp_ratio": TINY.mlp_ratio,
        "input_size": TINY.grid,
        "in_channels": TINY.channels,
        "num_classes": TINY.num_classes - 1,
        "hidden_size": [TINY.width, TINY.head_width],
        "depth": [TINY.depth, TINY.head_depth],
        "num_heads": [TINY.heads, TINY.head_heads],
        # What it can run at all: one patch size, rotary positions, and shifts in its adaLN.
        "patch_size": 1,
        "use_rope": True,
        "wo_shift": False,
        "class_dropout_prob": 0.1,
    }
    assert ours == theirs


def test_published_sizes():
    """hidden_size, depth and num_heads of the published configurations: [encoder, head]."""
    assert tuple(SIZES["S"]) == (384, 12, 6, 2048, 2, 16)
    assert tuple(SIZES["XL"]) == (1152, 28, 16, 2048, 2, 16)
    with torch.device("meta"):
        trunk = DDT(DDTConfig())
    millions = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
    assert millions == pytest.approx(839, abs=1)  # the paper calls it 839M
