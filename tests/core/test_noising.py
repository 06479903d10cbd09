"""The noising plans: expectations in closed form, and the bugs that other implementations have."""

import pickle
from dataclasses import fields

import pytest
import torch

from core.errors import ConfigError
from core.keys import generator
from core.noising import NOISINGS, NoisingConfig, draw_levels, picked, stack_levels
from core.schedule import TimestepConfig

UNIFORM = TimestepConfig()


def many(config: NoisingConfig, ratio: float, length: int = 16, count: int = 4000, **conditioning_mask):
    """Per-token student levels (count, length) and teacher levels."""
    pairs = [
        draw_levels(config, UNIFORM, ratio, [length], generator("noising", i), **conditioning_mask)
        for i in range(count)
    ]
    student, teacher = (stack_levels(list(side)) for side in zip(*pairs, strict=True))
    return student, teacher


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_dual_is_unsorted_with_p_of_t_as_every_tokens_marginal(ratio):
    """E[tau] = 1/2, E[min] = 1/3, E|t - s| = 1/3; sorting would give 0.367, 0.417 or 0.633, 0.583 for tau."""
    student, teacher = many(NoisingConfig(kind="dual"), ratio)
    assert student.per_token(16).mean().item() == pytest.approx(0.5, abs=0.015)
    assert teacher.per_token(16).mean().item() == pytest.approx(1 / 3, abs=0.015)
    assert (student.values[:, 0] - student.values[:, 1]).abs().mean().item() == pytest.approx(1 / 3, abs=0.015)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_the_mask_is_bernoulli_per_token(ratio):
    student, _ = many(NoisingConfig(kind="dual"), ratio)
    picked = student.index.float()
    assert picked.mean().item() == pytest.approx(ratio, abs=0.01)
    assert picked.sum(1).var().item() == pytest.approx(16 * ratio * (1 - ratio), rel=0.1)


def test_exact_mask_picks_the_same_count_every_time():
    student, _ = many(NoisingConfig(kind="dual", mask="exact"), 0.25, count=200)
    assert (student.index.sum(1) == 4).all()
    assert student.index.float().mean(0).std() < 0.06  # and any token may be picked


@pytest.mark.parametrize(
    ("ratio", "length", "count"),
    [(0.25, 256, 64), (0.1, 256, 26), (0.25, 10, 3), (0.29, 50, 15), (0.5, 7, 4), (0.1, 4, 0), (0.5, 1, 1)],
)
def test_an_exact_mask_has_the_nearest_count_and_a_half_goes_up(ratio, length, count):
    """Python's own round would give 2 of 10, and 14 of 50, whose product is a little below 14.5."""
    assert picked(ratio, length) == count
    config = NoisingConfig(kind="dual", mask="exact", attention_separation=True)
    student, _ = many(config, ratio, length, count=20)
    assert (student.index.sum(1) == count).all()
    assert student.separate == (length - count, count)
    assert many(NoisingConfig(kind="full_masking", mask="exact"), ratio, length, 20)[0].index.sum() == 20 * count


def test_teacher_level_is_the_drawn_minimum_even_when_a_group_is_empty():
    """With 6 tokens and a ratio of 0.1 over half of the samples have no masked token."""
    student, teacher = many(NoisingConfig(kind="dual"), 0.1, length=6, count=500)
    assert torch.equal(teacher.values[:, 0], student.values.min(dim=1).values)
    assert (student.index.sum(1) == 0).float().mean() > 0.4


def test_s_within_and_homogeneous_share():
    student, _ = many(NoisingConfig(kind="dual", s_within=0.2), 0.25)
    t, s = student.values.T
    assert ((s <= t) & (s >= (t - 0.2).clamp_min(0) - 1e-6)).all()
    student, _ = many(NoisingConfig(kind="dual", homogeneous_prob=0.25), 0.25)
    same = (student.values[:, 0] == student.values[:, 1]).float().mean().item()
    assert same == pytest.approx(0.25, abs=0.02)


def test_full_masking_and_diffusion_forcing():
    student, teacher = many(NoisingConfig(kind="full_masking"), 0.25, count=300)
    assert (student.per_token(16)[student.index == 1] == 1).all()
    assert torch.equal(teacher.values[:, 0], student.values[:, 0])
    student, teacher = many(NoisingConfig(kind="diffusion_forcing"), 0.25, count=300)
    assert student.per_token(16).std(dim=1).min() > 0.1
    assert torch.equal(teacher.values[:, 0], student.per_token(16).min(dim=1).values)


@pytest.mark.parametrize("kind", ["homogeneous", "dual", "full_masking", "diffusion_forcing"])
def test_given_tokens_share_one_low_level_in_student_and_teacher(kind):
    conditioning_mask = torch.zeros(16, dtype=torch.bool)
    conditioning_mask[:4] = True
    student, teacher = many(
        NoisingConfig(kind=kind), 0.25, count=200, conditioning_mask=conditioning_mask, conditioning_noise=0.2
    )
    levels, seen = student.per_token(16), teacher.per_token(16)
    assert torch.equal(levels[:, :4], seen[:, :4])
    assert torch.equal(levels[:, :1].expand(-1, 4), levels[:, :4])
    assert levels[:, :4].max() <= 0.2
    assert levels[:, :4].std() > 0.03
    assert levels[:, 4:].max() > 0.9
    assert seen[:, 4:].std(dim=1).max() < 1e-6  # the rest of the teacher's sample has one level


def test_teacher_of_sra_sees_each_sample_a_little_earlier():
    """max(0, t - 0.2 u): E[t - t'] = 0.1 but for t < 0.2, where what is below 0 is lost: 0.1 - 0.2^2 / 6 in all."""
    student, teacher = many(NoisingConfig(teacher="earlier"), 0.25)
    assert student.index is teacher.index is None
    assert student.values.shape == teacher.values.shape == (4000, 1)
    gap = student.values - teacher.values
    assert ((gap >= 0) & (gap <= 0.2)).all()
    assert (teacher.values >= 0).all()
    assert gap.mean().item() == pytest.approx(0.1 - 0.2**2 / 6, abs=0.003)
    far = gap[student.values > 0.2]
    assert far.std().item() == pytest.approx(0.2 / 12**0.5, rel=0.05)  # uniform
    assert abs(torch.corrcoef(torch.stack([far, student.values[student.values > 0.2]]))[0, 1]) < 0.05


def test_each_group_has_its_own_earlier_teacher_and_its_own_tokens():
    config = NoisingConfig(kind="dual", mask="exact", attention_separation=True, teacher="earlier", teacher_gap=0.3)
    student, teacher = many(config, 0.25, count=2000)
    assert student.separate == teacher.separate == (12, 4)
    assert torch.equal(student.index, teacher.index)
    gap = student.values - teacher.values
    assert ((gap >= 0) & (gap <= 0.3)).all()
    assert gap.max() > 0.29
    free = (student.values > 0.3).all(1)
    assert abs(torch.corrcoef(gap[free].T)[0, 1]) < 0.1  # of one number for both it would be 1
    assert abs(torch.corrcoef(student.values.T)[0, 1]) < 0.1


def test_separated_groups_with_a_teacher_at_the_minimum():
    config = NoisingConfig(kind="dual", mask="exact", attention_separation=True)
    student, teacher = many(config, 0.25, count=50)
    assert student.separate == (12, 4)
    assert (teacher.index, teacher.separate) == (None, None)  # one level: nothing to separate
    assert torch.equal(teacher.values[:, 0], student.values.min(dim=1).values)


@pytest.mark.parametrize("teacher", ["min", "earlier"])
def test_given_tokens_are_refused_beside_separation_instead_of_ending_it_silently(teacher):
    conditioning_mask = torch.zeros(16, dtype=torch.bool)
    conditioning_mask[:4] = True
    config = NoisingConfig(kind="dual", mask="exact", attention_separation=True, teacher=teacher)
    with pytest.raises(ConfigError, match="attention_separation: given tokens belong to no group"):
        many(config, 0.25, count=1, conditioning_mask=conditioning_mask)
    student, _ = many(config, 0.25, count=20)
    assert student.separate == (12, 4)


@pytest.mark.parametrize("kind", ["full_masking", "diffusion_forcing"])
def test_earlier_teacher_of_other_plans_keeps_their_tokens(kind):
    student, teacher = many(NoisingConfig(kind=kind, teacher="earlier"), 0.25, count=200)
    gap = student.per_token(16) - teacher.per_token(16)
    assert ((gap >= 0) & (gap <= 0.2)).all()
    assert torch.equal(student.index, teacher.index)
    if kind == "diffusion_forcing":
        assert gap.std(dim=1).min() > 0  # every token its own


def test_every_kind_and_teacher_has_its_own_settings_alone():
    of_kind = {
        "homogeneous": set(),
        "dual": {"mask", "s_within", "homogeneous_prob", "attention_separation"},
        "full_masking": {"mask"},
        "diffusion_forcing": set(),
    }
    of_teacher = {"min": set(), "earlier": {"teacher_gap"}}
    assert set(NOISINGS) == {(kind, teacher) for kind in of_kind for teacher in of_teacher}
    for (kind, teacher), row in NOISINGS.items():
        assert {entry.name for entry in fields(row)} == {"kind", "teacher"} | of_kind[kind] | of_teacher[teacher]
        config = NoisingConfig(kind, teacher)
        assert (type(config), config.kind, config.teacher) == (row, kind, teacher)
        assert pickle.loads(pickle.dumps(config)) == config


SEPARATED = {"kind": "dual", "mask": "exact", "attention_separation": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dual", "mask": "exat"}, "mask: 'exat' is not one of bernoulli, exact. Did you mean: 'exact'?"),
        ({"teacher": "earlier", "teacher_gap": 0}, "teacher_gap: 0 must lie in (0, 1]"),
        ({"teacher": "earlier", "teacher_gap": 1.1}, "teacher_gap: 1.1 must lie in (0, 1]"),
        ({"kind": "dual", "s_within": 1.2}, "s_within: 1.2 must lie in [0, 1]"),
        ({"kind": "dual", "homogeneous_prob": -0.1}, "homogeneous_prob: -0.1 must lie in [0, 1]"),
        ({**SEPARATED, "mask": "bernoulli"}, "attention_separation: needs mask exact, groups of one size"),
        ({**SEPARATED, "homogeneous_prob": 0.5}, "homogeneous_prob: 0.5 would put samples of one group"),
    ],
)
def test_refusals(settings, message):
    (line,) = NoisingConfig(**settings).problems()
    assert line.startswith(message)


def test_unknown_kinds_and_teachers_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        NoisingConfig("dul", teacher="early")
    assert caught.value.problems == [
        "kind: 'dul' is not one of homogeneous, dual, full_masking, diffusion_forcing. Did you mean: 'dual'?",
        "teacher: 'early' is not one of min, earlier. Did you mean: 'earlier'?",
    ]


@pytest.mark.parametrize(
    "settings", [{}, {"kind": "full_masking", "mask": "exact"}, {**SEPARATED, "teacher": "earlier", "teacher_gap": 0.3}]
)
def test_what_is_allowed(settings):
    assert NoisingConfig(**settings).problems() == []
