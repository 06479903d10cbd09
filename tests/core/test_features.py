"""The collector of hidden features: what it keeps, in whose order, where it stops, and what it refuses."""

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.trunk.features import Features
from core.types import FeatureLayers

DEPTH = 4
TIMES_TEN, TIMES_TWO = nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)
nn.init.eye_(TIMES_TEN.weight).data.mul_(10)
nn.init.constant_(TIMES_TWO.weight, 2.0)
HEADS = nn.ModuleDict({"dinov2": TIMES_TWO})


@torch.no_grad()
def collect(feature_layers, restore=lambda tokens: tokens):
    """Features of a trunk whose layer n gives the number n, and how many layers it ran."""
    features = Features(feature_layers, DEPTH, TIMES_TEN, HEADS)
    for layer in range(1, DEPTH + 1):
        if features.last(layer, torch.full((2, 5, 3), float(layer)), restore):
            return features.output(None), layer
    return features.output((torch.zeros(2, 5, 3),)), DEPTH


def test_what_is_tapped_is_kept_and_nothing_else():
    output, ran = collect(FeatureLayers(raw=(1, 3), projected={"teacher": 3, "dinov2": 2}))
    assert ran == DEPTH
    assert output.velocity is not None
    assert {layer: float(value.mean()) for layer, value in output.raw.items()} == {1: 1, 3: 3}
    assert output.projected.keys() == {"teacher", "dinov2"}
    torch.testing.assert_close(output.projected["teacher"], torch.full((2, 5, 3), 30.0))
    torch.testing.assert_close(output.projected["dinov2"], torch.full((2, 5, 1), 12.0))
    untapped, _ = collect(FeatureLayers())
    assert untapped.raw == untapped.projected == {}


def test_several_projectors_on_one_layer():
    output, _ = collect(FeatureLayers(projected={"teacher": 2, "dinov2": 2}))
    assert float(output.projected["teacher"].mean()) == pytest.approx(20)
    assert float(output.projected["dinov2"].mean()) == pytest.approx(12)


@pytest.mark.parametrize("stop", [1, 3, DEPTH])
def test_an_early_stop_has_no_velocity(stop):
    output, ran = collect(FeatureLayers(raw=(1,), stop_after=stop))
    assert ran == stop
    assert output.velocity is None
    assert output.raw.keys() == {1}


def test_only_tapped_layers_are_restored_and_once():
    seen = []

    def restore(tokens):
        seen.append(float(tokens.mean()))
        return -tokens

    output, _ = collect(FeatureLayers(raw=(2,), projected={"teacher": 2, "dinov2": 4}), restore)
    assert seen == [2, 4]
    assert float(output.raw[2].mean()) == -2
    assert float(output.projected["teacher"].mean()) == pytest.approx(-20)
    assert float(output.projected["dinov2"].mean()) == pytest.approx(-24)


@pytest.mark.parametrize(
    ("feature_layers", "message"),
    [
        (FeatureLayers(raw=(5,)), r"layer 5 is outside 1\.\.4 \(layers count the blocks done, depth 4\)"),
        (FeatureLayers(raw=(0,)), r"layer 0 is outside 1\.\.4"),
        (FeatureLayers(projected={"teacher": 3}, stop_after=2), r"layer 3 is outside 1\.\.2"),
        (FeatureLayers(stop_after=5), r"layer 5 is outside 1\.\.4"),
        (FeatureLayers(stop_after=0), "layer 0 is outside"),
        (FeatureLayers(projected={"dino": 1}), r"projector 'dino' is not one of the trunk's: dinov2, teacher"),
    ],
)
def test_taps_that_cannot_be_are_refused(feature_layers, message):
    with pytest.raises(ConfigError, match=message):
        Features(feature_layers, DEPTH, TIMES_TEN, HEADS)


def test_a_trunk_without_projectors_says_so():
    with pytest.raises(ConfigError, match="projector 'teacher' is not one of the trunk's: none"):
        Features(FeatureLayers(projected={"teacher": 1}), DEPTH, None, nn.ModuleDict())
