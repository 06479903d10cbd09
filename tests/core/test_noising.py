"""The noising plans: expectations in closed form, and the bugs that other implementations have."""

import pytest
import torch

from core.keys import generator
from core.noising import NoisingConfig, draw_levels, stack_levels
from core.schedule import TimeConfig

UNIFORM = TimeConfig()


def many(config: NoisingConfig, ratio: float, length: int = 16, count: int = 4000, **given):
    """Per-token student levels (count, length) and teacher levels."""
    pairs = [draw_levels(config, UNIFORM, ratio, length, generator("noising", i), **given) for i in range(count)]
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


def test_teacher_level_is_the_drawn_minimum_even_when_a_group_is_empty():
    """With 6 tokens and a ratio of 0.1 over half of the samples have no masked token."""
    student, teacher = many(NoisingConfig(kind="dual"), 0.1, length=6, count=500)
    assert torch.equal(teacher.values[:, 0], student.values.min(dim=1).values)
    assert (student.index.sum(1) == 0).float().mean() > 0.4


def test_s_within_and_homogeneous_share():
    student, _ = many(NoisingConfig(kind="dual", s_within=0.2), 0.25)
    t, s = student.values.T
    assert ((s <= t) & (s >= (t - 0.2).clamp_min(0) - 1e-6)).all()
    student, _ = many(NoisingConfig(kind="dual", homogeneous_share=0.25), 0.25)
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
    given = torch.zeros(16, dtype=torch.bool)
    given[:4] = True
    student, teacher = many(NoisingConfig(kind=kind), 0.25, count=200, given=given, given_noise=0.2)
    levels, seen = student.per_token(16), teacher.per_token(16)
    assert torch.equal(levels[:, :4], seen[:, :4])
    assert torch.equal(levels[:, :1].expand(-1, 4), levels[:, :4])
    assert levels[:, :4].max() <= 0.2
    assert levels[:, :4].std() > 0.03
    assert levels[:, 4:].max() > 0.9
    assert seen[:, 4:].std(dim=1).max() < 1e-6  # the rest of the teacher's sample has one level


def test_options_without_meaning_are_refused():
    problems = NoisingConfig(kind="homogeneous", s_within=0.2, homogeneous_share=2).problems()
    assert len(problems) == 2
    assert "only with 'dual'" in problems[0]
