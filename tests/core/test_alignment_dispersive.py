"""The variants of Dispersive Loss against their definitions in plain loops, and where they are delicate."""

import math

import pytest
import torch

from core.alignment.base import AlignmentInputs
from core.alignment.dispersive import VARIANTS, Dispersive, DispersiveConfig
from core.errors import ConfigError
from core.types import TrunkOutput

B, L, D = 4, 3, 5


def term(raw, config=None, loss_mask=None, count=None):
    """The term of features (B, L, D) at layer 2, by the class that training uses."""
    loss_mask = torch.ones(raw.shape[:2], dtype=torch.bool) if loss_mask is None else loss_mask
    count = float(loss_mask.sum()) if count is None else count
    inputs = AlignmentInputs(TrunkOutput(None, {2: raw}), None, {}, loss_mask, count, 0)
    return Dispersive(config or DispersiveConfig(), 2)(inputs)["align/dispersive"]


def value(raw, **settings):
    return float(term(raw, DispersiveConfig(**settings)).mean().detach())


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(z):
    return [(z[i], z[j]) for i in range(len(z)) for j in range(len(z))]


def squared(u, v):
    return sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) / len(u)


def cosine(u, v):
    return sum(x * y for x, y in zip(u, v, strict=True)) / math.sqrt(sum(x * x for x in u) * sum(y * y for y in v))


def correlation(u, v):
    return cosine([x - sum(u) / len(u) for x in u], [y - sum(v) / len(v) for y in v])


BY_HAND = {
    "infonce_l2": lambda z: math.log(sum(math.exp(-squared(u, v) / 0.5) for u, v in pairs(z)) / len(z) ** 2),
    "infonce_cosine": lambda z: math.log(sum(math.exp(cosine(u, v) / 0.5) for u, v in pairs(z)) / len(z) ** 2),
    "hinge": lambda z: sum(max(0, 1.7 - squared(u, v)) ** 2 for u, v in pairs(z)) / len(z) ** 2,
}


@pytest.mark.parametrize("variant", BY_HAND)
def test_variants_of_pairs(variant):
    raw = randn(B, L, D)
    settings = {"margin": 1.7} if variant == "hinge" else {"temperature": 0.5}
    expected = BY_HAND[variant](raw.flatten(1).tolist())
    assert value(raw, variant=variant, **settings) == pytest.approx(expected, rel=1e-6)  # float32 at the end
    distances = [squared(u, v) for u, v in pairs(raw.flatten(1).tolist()) if u is not v]
    assert min(distances) < 1.7 < max(distances)  # both sides of the margin are there


def test_covariance_is_the_mean_squared_correlation_of_two_features():
    raw = randn(B, L, D)
    columns = raw.flatten(1).T.tolist()
    squares = [correlation(u, v) ** 2 for m, u in enumerate(columns) for n, v in enumerate(columns) if m != n]
    assert value(raw, variant="covariance") == pytest.approx(sum(squares) / len(squares), rel=1e-6)
    assert value(100 * raw + 7, variant="covariance") == pytest.approx(value(raw, variant="covariance"), rel=1e-6)


def test_gradients_are_right():
    raw = randn(B, L, D).requires_grad_()
    for variant in VARIANTS:
        config = DispersiveConfig(variant=variant)
        flat = raw.detach().flatten(1).requires_grad_()
        assert torch.autograd.gradcheck(lambda z, c=config: c.value(z, torch.tensor(L * D)), flat), variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_samples_and_zeros_have_finite_gradients(variant):
    """The square root of a distance has none at 0: two equal samples, or the zero initialization of a last block."""
    same = randn(1, L, D).expand(B, L, D).clone().requires_grad_()
    twins = randn(B, L, D)
    twins[1] = twins[0]
    for raw in (same, twins.requires_grad_(), torch.zeros(B, L, D, requires_grad=True)):
        loss = term(raw, DispersiveConfig(variant=variant)).mean()
        (gradient,) = torch.autograd.grad(loss, raw)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e3


def test_known_values():
    assert value(torch.ones(B, L, D)) == pytest.approx(0, abs=1e-7)  # all equal: the worst there is
    far = torch.arange(B).float()[:, None, None] * torch.full((B, L, D), 1e4)
    assert value(far) == pytest.approx(-math.log(B), rel=1e-6)  # only the diagonal is left: the best there is
    orthogonal = torch.eye(B)[:, None].repeat(1, 1, 1)
    one, zero = math.e, 1.0
    expected = math.log((B * one + B * (B - 1) * zero) / B**2)
    assert value(orthogonal, variant="infonce_cosine") == pytest.approx(expected, rel=1e-6)
    assert value(far, variant="hinge") == pytest.approx(1 / B, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_down_the_gradient_spreads_the_samples(variant):
    """The point of the loss, for samples that are close together."""
    raw = (randn(1, L, D) + 0.3 * randn(B, L, D, seed=1)).requires_grad_()
    (gradient,) = torch.autograd.grad(term(raw, DispersiveConfig(variant=variant)).mean(), raw)
    moved = raw.detach() - 0.1 * gradient / gradient.norm()

    def spread(x):
        x = x.flatten(1)
        if variant == "covariance":
            return -float(torch.corrcoef(x.T).square().sum())
        x = torch.nn.functional.normalize(x, dim=1) if variant == "infonce_cosine" else x
        return float(torch.pdist(x).square().mean())

    assert spread(moved) > spread(raw.detach())


def test_numbers_of_a_real_layer_in_float32_and_under_autocast():
    """Large features that differ little (1e-3 of their size), in float32 and where products run in bfloat16."""
    raw = (randn(1, 64, 96, scale=30) + randn(B, 64, 96, seed=1, scale=0.03)).float()
    exact = math.log(sum(math.exp(-squared(u, v)) for u, v in pairs(raw.double().flatten(1).tolist())) / B**2)
    assert exact < -1e-4
    assert value(raw) == pytest.approx(exact, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        for variant in VARIANTS:
            inside = term(raw, DispersiveConfig(variant=variant))
            assert inside.total.dtype == torch.float32
            assert float(inside.mean()) == pytest.approx(value_outside(raw, variant), rel=1e-6)


def value_outside(raw, variant):
    with torch.autocast("cpu", enabled=False):
        return value(raw, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_tokens_that_count_in_every_sample_are_compared(variant):
    raw = randn(B, L, D)
    loss_mask = torch.ones(B, L, dtype=torch.bool)
    loss_mask[0, 2] = loss_mask[3, 2] = False
    config = DispersiveConfig(variant=variant)
    expected = value(raw[:, :2], variant=variant)
    assert float(term(raw, config, loss_mask).mean()) == pytest.approx(expected, rel=1e-6)
    raw.requires_grad_()
    (gradient,) = torch.autograd.grad(term(raw, config, loss_mask).mean(), raw)
    assert (gradient[:, 2] == 0).all()
    nothing = term(raw, config, torch.zeros(B, L, dtype=torch.bool), count=1.0)
    assert float(nothing.mean().detach()) == 0


def test_microbatches_are_averaged_by_their_tokens_and_do_not_meet():
    first, second = randn(2, L, D), randn(4, L, D, seed=1)
    count = 6.0 * L
    parts = [float(term(part, count=count).mean()) for part in (first, second)]
    expected = value(first) * 2 / 6 + value(second) * 4 / 6
    assert sum(parts) == pytest.approx(expected, rel=1e-6)
    together = value(torch.cat([first, second]))
    assert abs(together - expected) > 0.05


def test_default_layer_and_refusals():
    assert Dispersive(DispersiveConfig(), 12).feature_layers(()).raw == (12,)
    assert Dispersive(DispersiveConfig(layer=3), 12).feature_layers(()).raw == (3,)
    assert Dispersive.teacher_feature_layers is None
    assert [DispersiveConfig(variant=variant).problems() for variant in VARIANTS] == [[]] * 4
    assert DispersiveConfig(variant="hinge", margin=2.0).problems() == []
    cases = {
        "weight: 0 must be above 0": {"weight": 0},
        "temperature: -1 must be above 0": {"temperature": -1},
        "margin: 0 must be above 0": {"margin": 0, "variant": "hinge"},
    }
    for message, settings in cases.items():
        (line,) = DispersiveConfig(**settings).problems()
        assert line.startswith(message)
    with pytest.raises(ConfigError, match=r"'hinges' is not one of .*covariance\. Did you mean: 'hinge'\?"):
        DispersiveConfig(variant="hinges")
    for settings in ({"variant": "hinge", "temperature": 0.5}, {"margin": 2.0}):
        with pytest.raises(TypeError, match=list(settings)[-1]):
            DispersiveConfig(**settings)
    assert DispersiveConfig(layer=5).depth_problems(5) == []
    for layer in (0, 6):
        assert DispersiveConfig(layer=layer).depth_problems(5) == [
            f"layer: {layer} must lie in 1..5, the blocks of the trunk"
        ]
