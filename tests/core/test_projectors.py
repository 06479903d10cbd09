"""Projectors against their formulas, their names in a trunk, and their start."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.errors import ConfigError
from core.trunk.projectors import ProjectorSpec, SimpleHead, build_projectors, repa_head
from core.trunk.sit import SiT, SiTConfig
from tests.core.test_sit import SMALL


def test_simple_head_is_two_layers():
    head, x = SimpleHead(6, 4), torch.randn(2, 3, 6)
    first, second = head.linear1, head.linear2
    assert first.weight.shape == (12, 6)
    hidden = x @ first.weight.T + first.bias
    wanted = hidden * torch.sigmoid(hidden) @ second.weight.T + second.bias
    torch.testing.assert_close(head(x), wanted)


def test_repa_head_is_three_layers_of_2048():
    """Names and shapes of REPA's build_mlp, with SiLU between."""
    head, x = repa_head(6, 5), torch.randn(2, 3, 6)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {"0.weight": (2048, 6), "0.bias": (2048,), "2.weight": (2048, 2048), "2.bias": (2048,),
                      "4.weight": (5, 2048), "4.bias": (5,)}  # fmt: skip
    wanted = x @ head[0].weight.T + head[0].bias
    for layer in (head[2], head[4]):
        wanted = F.silu(wanted) @ layer.weight.T + layer.bias
    torch.testing.assert_close(head(x), wanted)


def test_the_teachers_projector_stands_apart():
    specs = {"dinov2": ProjectorSpec("repa", out=7), "teacher": ProjectorSpec(), "mert": ProjectorSpec(out=5)}
    teacher, others = build_projectors(specs, width=6)
    assert teacher(torch.zeros(1, 6)).shape == (1, 6)
    assert {name: head(torch.zeros(1, 6)).shape[-1] for name, head in others.items()} == {"dinov2": 7, "mert": 5}
    assert build_projectors({}, width=6)[0] is None
    assert isinstance(build_projectors({}, width=6)[1], nn.ModuleDict)


def test_unknown_kind_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"projector: 'simpel' is not one of simple, repa\. Did you mean: 'simple'"):
        build_projectors({"teacher": ProjectorSpec("simpel")}, width=6)


def test_names_in_a_trunk_and_a_start_that_others_do_not_change():
    alone = SiT(SiTConfig(**SMALL), seed=3).state_dict()
    one = SiT(SiTConfig(**SMALL), seed=3, projectors={"teacher": ProjectorSpec()}).state_dict()
    two = {"dinov2": ProjectorSpec("repa", out=7), "teacher": ProjectorSpec()}
    both = SiT(SiTConfig(**SMALL), seed=3, projectors=two).state_dict()
    assert one.keys() - alone.keys() == {f"projector.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert both.keys() - one.keys() == {
        f"projectors.dinov2.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")
    }
    assert all(torch.equal(value, one[name]) for name, value in alone.items())
    assert all(torch.equal(value, both[name]) for name, value in one.items())
    assert both["projectors.dinov2.2.weight"].any()
