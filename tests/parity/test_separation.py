"""Attention separation against the network of its authors (arXiv 2607.02508), run with the same weights in float64."""

import pytest
import torch

from core.types import FeatureLayers, NoiseLevels
from tests.parity.common import golden, image_batch, tiny_trunk, worst

SEPARATION = golden("separation")


@pytest.mark.parametrize("sizes", [(12, 4), (4, 9, 3)])
def test_outputs_and_gradients(sizes):
    def of(name):
        return SEPARATION[f"{len(sizes)}.{name}"]

    trunk, x = tiny_trunk().double(), of("x")
    levels = NoiseLevels(of("values"), of("index"), sizes)
    batch, feature_layers = image_batch(x, SEPARATION["y"]), FeatureLayers(projected={"teacher": 2})
    output = trunk((x.double(),), levels, batch, feature_layers)
    (velocity,), projected = output.velocity, output.projected["teacher"]
    assert (
        worst(velocity, of("velocity")) < 1e-6
    )  # worst seen 2.2e-15; times pass float32 sines, which differ by machine
    assert worst(projected, of("projected_layer2")) < 1e-6  # worst seen 2.1e-15

    ((velocity * of("velocity_weight")).sum() + (projected * of("projected_weight")).sum()).backward()
    recorded = set()
    for name, parameter in trunk.named_parameters():
        assert float(parameter.grad.norm()) == pytest.approx(float(of(f"grad_norm.{name}")), rel=1e-6)  # seen 8.9e-16
        if (expected := SEPARATION.get(f"{len(sizes)}.grad.{name}")) is not None:
            assert worst(parameter.grad, expected) < 1e-6 * float(expected.abs().max())  # worst seen 1.8e-15
            recorded.add(name)
    assert len(recorded) == 6

    with torch.no_grad():
        mixed = trunk((x.double(),), NoiseLevels(of("values"), of("index")), batch).velocity[0]
    assert worst(mixed, of("velocity")) > 0.1
