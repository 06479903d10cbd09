"""Padding: what stands there changes no bit of a loss, a velocity at real tokens or a gradient, on any trunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.alignment.dispersive import DispersiveConfig
from core.alignment.ema_teacher import EmaTeacherConfig
from core.alignment.external import ExternalConfig
from core.alignment.layer_sync import LayerSyncConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.errors import DataError, ShapeError
from core.evaluation.health import LayerHealth
from core.evaluation.inputs import noisy_inputs
from core.evaluation.velocity import velocity_loss_curve
from core.keys import generator
from core.noising import NoiseSample
from core.objective import Objective, total_loss
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch, TrunkOutput

SAMPLES, TOKENS, CHANNELS = 3, 9, 4
PROJECTORS = {"teacher": ProjectorSpec(), "dino": ProjectorSpec(out=6)}
CONTEXT = ContextConfig(kind="labels", num_classes=4)
TRUNKS = {
    "sit": lambda: SiT(
        SiTConfig(width=24, depth=4, heads=2, grid=3, channels=CHANNELS, num_classes=5), projectors=PROJECTORS
    ),
    "ddt": lambda: DDT(
        DDTConfig("S", 24, 4, 2, 32, 1, 2, grid=3, channels=CHANNELS, num_classes=5), projectors=PROJECTORS
    ),
    "mmdit": lambda: MMDiT(
        MMDiTConfig(
            size="tiny", width=48, heads=2, double_blocks=2, single_blocks=2, channels={"image": 4}, context=CONTEXT
        ),
        projectors=PROJECTORS,
    ),
}
# A full sample, one with a short part, and one whose first tokens are padding.
VALID = torch.stack([torch.arange(TOKENS) < n for n in (9, 5, 7)])
VALID[2] = VALID[2].flip(0)


def made(kind: str) -> torch.nn.Module:
    trunk = TRUNKS[kind]().eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # the zero ones would hide everything
            parameter.copy_(torch.randn(parameter.shape, generator=generator("weights", name)) * 0.1)
    return trunk


def normals(name: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(name))


def batch_of(parts: int, valid: torch.Tensor, conditioning_mask: torch.Tensor | None = None) -> TokenBatch:
    ids = torch.tensor([[[0, i // 3, i % 3] for i in range(TOKENS)]])
    segments = tuple(
        Segment("image", normals(f"x0{i}", SAMPLES, TOKENS, CHANNELS), ids, valid, conditioning_mask, part=f"part{i}")
        for i in range(parts)
    )
    context = Context(torch.zeros(SAMPLES, dtype=torch.bool), torch.tensor([1, 2, 3]))
    return TokenBatch(segments, context, ("a", "b", "c"))


def drawn_for(batch: TokenBatch) -> NoiseSample:
    length = sum(batch.lengths)
    values = torch.rand(SAMPLES, 2, generator=generator("levels"))
    index = (torch.rand(SAMPLES, length, generator=generator("mask")) < 0.4).long()
    noise = tuple(normals(f"x1{i}", *segment.x0.shape) for i, segment in enumerate(batch.segments))
    return NoiseSample(noise, NoiseLevels(values, index), NoiseLevels(values.amin(1, keepdim=True)))


def parts_of(kind: str) -> int:
    return 2 if kind == "mmdit" else 1


def terms_and_gradients(trunk, objective, batch, drawn, targets):
    trunk.zero_grad()
    losses = objective(trunk, trunk, batch, drawn, targets=targets)
    total_loss(losses).backward()
    gradients = {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}
    return {name: float(term.total.detach()) for name, term in losses.items()}, gradients


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("similarity", ["cosine", "smooth_l1", "cosine_over_tokens"])
@pytest.mark.parametrize("kind", TRUNKS)
@pytest.mark.parametrize("value", [7.0, -1e30, float("nan")])
def test_padding_changes_no_bit_of_a_loss_or_a_gradient(kind, similarity, value):
    """With all alignment terms at once; their targets at padding are changed, too."""
    alignment = AlignmentConfig(
        EmaTeacherConfig(similarity=similarity),
        ExternalConfig(similarity=similarity),
        LayerSyncConfig(similarity=similarity),
        DispersiveConfig(),
    )
    trunk = made(kind)
    objective = Objective(build_alignment(alignment, trunk.depth))
    batch = batch_of(parts_of(kind), VALID)
    drawn, length = drawn_for(batch), sum(batch.lengths)
    targets = {"dino": normals("dino", SAMPLES, length, 6)}
    before = terms_and_gradients(trunk, objective, batch, drawn, targets)
    assert {"align/teacher", "align/dino", "align/layer_sync", "align/dispersive"} <= set(before[0])

    padding = ~VALID[..., None]
    segments = tuple(replace(s, x0=s.x0.masked_fill(padding, value)) for s in batch.segments)
    noise = tuple(part.masked_fill(padding, -value) for part in drawn.noise)
    finite = value if abs(value) < 10 else 3.0  # of features, which are no input of the trunk
    changed = {"dino": targets["dino"].masked_fill(torch.cat([padding] * len(segments), 1), finite)}
    after = terms_and_gradients(
        trunk, objective, replace(batch, segments=segments), replace(drawn, noise=noise), changed
    )
    assert after[0] == before[0]
    assert set(after[1]) == set(before[1])
    assert all(same_bits(after[1][name], gradient) for name, gradient in before[1].items())
    assert all(gradient.isfinite().all() for gradient in after[1].values())


@pytest.mark.parametrize("kind", TRUNKS)
def test_trunks_do_not_look_at_padding_themselves(kind):
    """Other numbers at padding, without the objective that would hide them: velocities, features and gradients."""
    trunk, batch = made(kind), batch_of(parts_of(kind), VALID)
    drawn = drawn_for(batch)
    keep = torch.cat([VALID] * len(batch.segments), dim=1)

    def run(fill: float):
        trunk.zero_grad()
        noisy = tuple(x.masked_fill(~VALID[..., None], fill) for x in drawn.noise)
        output = trunk(noisy, drawn.student, batch, FeatureLayers(raw=(2, 4)))
        velocities = [v[VALID] for v in output.velocity]
        torch.cat(velocities).square().sum().backward()
        features = [output.raw[layer][keep] for layer in (2, 4)]
        gradients = [p.grad for p in trunk.parameters() if p.grad is not None]
        return [tensor.detach().clone() for tensor in (*velocities, *features, *gradients)]

    for a, b in zip(run(0.5), run(40.0), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("kind", TRUNKS)
def test_a_sample_with_padding_is_the_shorter_sample(kind):
    trunk, batch = made(kind), batch_of(1, VALID)
    drawn = drawn_for(batch)
    with torch.no_grad():
        (padded,) = trunk(drawn.noise, drawn.student, batch).velocity
        for i in range(SAMPLES):
            keep, segment = VALID[i], batch.segments[0]
            short = Segment("image", segment.x0[i : i + 1, keep], segment.ids[:, keep])
            context = Context(batch.context.dropped[i : i + 1], batch.context.label[i : i + 1])
            levels = NoiseLevels(drawn.student.values[i : i + 1], drawn.student.index[i : i + 1, keep])
            (alone,) = trunk((drawn.noise[0][i : i + 1, keep],), levels, TokenBatch((short,), context)).velocity
            torch.testing.assert_close(padded[i : i + 1, keep], alone, atol=1e-5, rtol=1e-5)


class Zero(torch.nn.Module):
    def forward(self, noisy, levels, batch, feature_layers):
        return TrunkOutput(tuple(torch.zeros_like(part) for part in noisy))


def test_losses_divide_by_the_tokens_that_carry_loss():
    """Data of 1 and 2, noise of 0: squares of 1 and 4; 21 real tokens, 4 of which are given in the second part."""
    given = torch.zeros(SAMPLES, TOKENS, dtype=torch.bool)
    given[0, :4] = True
    batch = batch_of(2, VALID)
    segments = tuple(
        replace(s, x0=torch.full_like(s.x0, i + 1.0).masked_fill(~VALID[..., None], 99.0), weight=1.0 - 0.5 * i)
        for i, s in enumerate(batch.segments)
    )
    batch = replace(batch, segments=(segments[0], replace(segments[1], conditioning_mask=given)))
    drawn = replace(drawn_for(batch), noise=tuple(torch.zeros_like(s.x0) for s in batch.segments))
    losses = Objective()(Zero(), None, batch, drawn)
    assert {name: (float(term.total), term.count) for name, term in losses.items()} == {
        "flow/part0": (21.0, 21.0),
        "flow/part1": (4.0 * 17, 17.0),
    }
    assert float(total_loss(losses)) == 1 + 0.5 * 4


@pytest.mark.parametrize("kind", TRUNKS)
def test_a_sample_without_a_token_that_carries_loss_is_fine_and_a_batch_is_not(kind):
    """One that is nothing but padding, and one that is given as a whole."""
    valid = torch.ones(SAMPLES, TOKENS, dtype=torch.bool)
    valid[0] = False
    given = torch.zeros_like(valid)
    given[1] = True
    batch, trunk = batch_of(parts_of(kind), valid, given), made(kind)
    drawn = drawn_for(batch)
    losses = Objective()(trunk, None, batch, drawn)
    total_loss(losses).backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters() if p.grad is not None)
    assert [term.count for term in losses.values()] == [TOKENS] * parts_of(kind)

    everything = batch_of(parts_of(kind), valid, torch.ones_like(valid))
    with pytest.raises(DataError, match=r"no token of part0.* carries loss"):
        Objective()(trunk, None, everything, drawn)
    with pytest.raises(DataError, match="no token"):
        Objective()(trunk, None, batch, drawn, {"part0": 0.0, "part1": 0.0})


def test_measures_do_not_look_at_padding():
    trunk, batch = made("mmdit"), batch_of(2, VALID)
    segments = tuple(replace(s, x0=s.x0.masked_fill(~VALID[..., None], 50.0)) for s in batch.segments)
    other = replace(batch, segments=segments)
    curves = [velocity_loss_curve(trunk, [each], (0.3, 0.7), seed=0) for each in (batch, other)]
    assert curves[0] == curves[1]
    assert curves[0].tokens == {"part0": 21, "part1": 21}
    found = []
    for each in (batch, other):
        noisy, _, levels = noisy_inputs(each, 0.3, 0)
        health = LayerHealth()
        with torch.no_grad():
            health.update(trunk(noisy, levels, each, FeatureLayers(raw=(2,))).raw[2], each.loss_mask())
        found.append(health.result())
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["sit", "ddt"])
def test_padding_belongs_to_no_separate_group(kind):
    batch = batch_of(1, VALID)
    index = torch.tensor([[0] * 6 + [1] * 3] * SAMPLES)
    levels = NoiseLevels(torch.rand(SAMPLES, 2), index, (6, 3))
    with pytest.raises(ShapeError, match="padding belongs to no group"):
        made(kind)((batch.segments[0].x0,), levels, batch)
