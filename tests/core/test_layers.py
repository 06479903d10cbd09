"""Initial weights: a function of seed and name, wherever the storage came from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.layers import initialize, layer_fraction
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SiT, SiTConfig

CONTEXT = ContextConfig(kind="tokens", vocabulary=20, words=4, encoder_depth=1)
TRUNKS = {
    "mmdit": (MMDiT, MMDiTConfig(width=32, heads=2, double_blocks=1, single_blocks=1, channels={"image": 4})),
    "mmdit text": (
        MMDiT,
        MMDiTConfig(width=32, heads=2, double_blocks=1, single_blocks=1, channels={"image": 4}, context=CONTEXT),
    ),
    "sit": (SiT, SiTConfig(width=32, heads=2, depth=2, grid=2, channels=4, num_classes=3)),
    "ddt": (
        DDT,
        DDTConfig(
            width=32, heads=2, depth=1, head_width=16, head_heads=2, head_depth=1, grid=2, channels=4, qk_norm=True
        ),
    ),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_of_the_meta_device_starts_like_any_other_once_it_is_reset(name):
    make, config = TRUNKS[name]
    projectors = {TEACHER: ProjectorSpec(), "image_dinov2": ProjectorSpec("repa", 8)}
    wanted = make(config, 3, projectors).state_dict()
    with torch.device("meta"):
        trunk = make(config, 3, projectors)
    trunk.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*trunk.parameters(), *trunk.buffers()]:
            tensor.fill_(float("nan"))  # what memory may hold
    trunk.reset(3)
    assert trunk.state_dict().keys() == wanted.keys()
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, wanted[key]), key


def test_initial_values_by_kind_and_name():
    module = nn.ModuleDict({"a": nn.Linear(300, 200), "table": nn.Embedding(100, 50), "norm": nn.LayerNorm(7)})
    module["head"] = nn.Linear(4, 4)
    initialize(module, 0, {"table": 0.02}, zero=("head",))
    bound = (6 / 500) ** 0.5
    assert 0.99 * bound < module["a"].weight.abs().max() <= bound
    assert module["table"].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module["norm"].weight.eq(1).all()
    for zero in (module["a"].bias, module["norm"].bias, *module["head"].parameters()):
        assert zero.eq(0).all()
    before = module["a"].weight.clone()
    initialize(module["a"], 0, {}, zero=())
    assert not torch.equal(module["a"].weight, before)  # its name is another one: "weight" instead of "a.weight"


def test_layers_at_a_fraction_of_the_depth():
    assert [layer_fraction(fraction, 28) for fraction in (0.3, 0.7)] == [8, 20]
    assert [layer_fraction(0.3, depth) for depth in (1, 5, 12)] == [1, 2, 4]
    assert layer_fraction(1.0, 3) == 3
