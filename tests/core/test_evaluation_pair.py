"""Student against teacher, noised as in training: what each sees, and that batches do not matter."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.errors import DataError
from core.evaluation.inputs import keyed_noise
from core.evaluation.pair import PairPlan, pair_health
from core.modes import Mode, Modes
from core.noising import NoisingConfig
from core.objective import noised
from core.schedule import TimestepConfig
from core.trunk.projectors import TEACHER
from core.types import TokenBatch, TrunkOutput
from tests.core.evaluation_batches import batches, joined, segment

DUAL = NoisingConfig(kind="dual", mask="bernoulli")


class Seeing(nn.Module):
    """Features are what the trunk was given, `sign` times; it notes its inputs."""

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.sign = sign
        self.inputs = []

    def forward(self, noisy, levels, batch, feature_layers):
        self.inputs.append((noisy, levels, batch, feature_layers))
        features = self.sign * torch.cat(noisy, dim=1)
        projected = {name: features for name in feature_layers.projected}
        return TrunkOutput(None, {layer: features for layer in feature_layers.raw}, projected)


def plan(student: nn.Module, noising: NoisingConfig = DUAL, **settings) -> PairPlan:
    return PairPlan(student, 2, 5, noising, TimestepConfig(kind="uniform"), 0.25, **settings)


def test_both_see_the_same_noise_each_at_its_own_levels_and_leave_early():
    student, teacher = Seeing(), Seeing()
    (batch,) = batches(40, 40, tokens=12)
    found = pair_health(plan(student), teacher, [batch], seed=3)
    ((noisy, levels, _, feature_layers),), ((clean, cleaner, _, teacher_feature_layers),) = (
        student.inputs,
        teacher.inputs,
    )
    noise = keyed_noise(batch, 3)
    assert torch.equal(noisy[0], noised(batch, noise, levels)[0])
    assert torch.equal(clean[0], noised(batch, noise, cleaner)[0])
    assert torch.equal(cleaner.values[:, 0], levels.values.min(dim=1).values)  # Self-Flow: min(t, s)
    assert (feature_layers.projected, feature_layers.raw, feature_layers.stop_after) == ({TEACHER: 2}, (), 2)
    assert (teacher_feature_layers.raw, teacher_feature_layers.stop_after) == ((5,), 5)

    tokens = levels.per_token(12)
    noisier = tokens > cleaner.per_token(12)
    assert found["share_noisier"] == pytest.approx(float(noisier.double().mean()))
    assert found["level_student"] == pytest.approx(float(tokens.double().mean()), rel=1e-6)
    assert found["level_teacher"] == pytest.approx(float(cleaner.values.double().mean()), rel=1e-6)
    t, s = levels.values.unbind(1)
    assert found["level_gap"] == pytest.approx(float((t - s).abs().double().mean()), rel=1e-6)
    assert found["share_masked"] == pytest.approx(float((levels.index == 1).double().mean()))
    assert 0.2 < found["share_masked"] < 0.3
    assert found["cosine_same"] == pytest.approx(1, abs=1e-6)  # the same tokens
    assert found["cosine_noisier"] < 0.95


def test_opposite_features_have_the_opposite_cosine():
    found = pair_health(plan(Seeing(-1)), Seeing(), batches(4, 2), seed=3)
    same = pair_health(plan(Seeing()), Seeing(), batches(4, 2), seed=3)
    assert found["cosine"] == pytest.approx(-same["cosine"], rel=1e-6)
    assert found["norm_student"] == same["norm_student"] > 0


@pytest.mark.parametrize(
    "noising",
    [DUAL, NoisingConfig(teacher="earlier"), NoisingConfig(kind="diffusion_forcing"), NoisingConfig("full_masking")],
    ids=lambda noising: f"{noising.kind} {noising.teacher}",
)
def test_numbers_do_not_depend_on_the_batch_size_nor_change_in_a_second_run(noising):
    whole = pair_health(plan(Seeing(), noising), Seeing(), batches(7, 7), seed=3)
    parts = pair_health(plan(Seeing(), noising), Seeing(), batches(7, 2), seed=3)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert pair_health(plan(Seeing(), noising), Seeing(), batches(7, 7), seed=3) == whole
    assert pair_health(plan(Seeing(), noising), Seeing(), batches(7, 7), seed=4) != whole
    assert ("level_gap" in whole) == (noising.kind == "dual")
    if noising.teacher == "earlier":
        assert whole["share_noisier"] > 0.99


def test_separated_groups_stay_separate():
    student = Seeing()
    noising = replace(DUAL, mask="exact", attention_separation=True)
    pair_health(plan(student, noising), Seeing(), batches(3, 3, tokens=8), seed=0)
    assert student.inputs[0][1].separate == (6, 2)


def test_given_tokens_are_given_to_both_and_not_counted():
    conditioning_mask = torch.zeros(6, dtype=torch.bool)
    conditioning_mask[:2] = True
    student, teacher = Seeing(), Seeing()
    modes = Modes({"first_frame": (0.5, Mode(conditioning_mask))}, noise=(0.1,))
    found = pair_health(plan(student, modes=modes), teacher, batches(60, 60), seed=1)
    (_, levels, batch, _), (_, cleaner, _, _) = student.inputs[0], teacher.inputs[0]
    rows = batch.segments[0].conditioning_mask
    assert 0.3 < float(rows[:, 0].float().mean()) < 0.7
    assert not rows[:, 2:].any()
    assert torch.equal(levels.per_token(6)[rows], cleaner.per_token(6)[rows])
    assert levels.per_token(6)[rows].max() <= 0.1
    assert found["share_masked"] == pytest.approx(float((levels.index == 1)[~rows].double().mean()))


def test_mistakes_are_named():
    with pytest.raises(DataError, match="no token in the loss mask"):
        pair_health(plan(Seeing()), Seeing(), [], seed=0)


def test_samples_of_two_parts_have_one_pair_of_times_or_one_each():
    two: TokenBatch = joined(["a", "b"], segment(["a", "b"]), segment(["a", "b"], "action"))
    for independent, levels in ((False, 2), (True, 4)):
        student = Seeing()
        modes = Modes(rest=Mode(independent=independent))
        found = pair_health(plan(student, modes=modes), Seeing(), [two], seed=0)
        seen = student.inputs[0][1]
        assert seen.values.shape == (2, levels)
        assert found["share_masked"] == pytest.approx(float((seen.index % 2 == 1).double().mean()))
