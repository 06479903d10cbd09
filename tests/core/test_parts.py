"""Samples of several parts: their times, what is given, the loss of each, and what a trunk can carry."""

from __future__ import annotations

import pytest
import torch

from core.conditioning import NOTHING_GIVEN, Conditioning
from core.errors import ConfigError, ShapeError
from core.keys import generator
from core.noising import NoiseSample, NoisingConfig, draw_levels
from core.objective import Objective, total_loss
from core.schedule import TimestepConfig
from core.trunk.mmdit import MMDiTConfig
from core.types import Context, NoiseLevels, Segment, TokenBatch, TrunkOutput

LENGTHS = (6, 4)


def pairs(config: NoisingConfig, count: int = 400, **conditioning_mask):
    return [
        draw_levels(config, TimestepConfig(), 0.5, LENGTHS, generator("parts", i), **conditioning_mask)
        for i in range(count)
    ]


def test_shared_times_are_those_of_one_longer_part():
    config = NoisingConfig(kind="dual")
    for i in range(20):
        student, teacher = draw_levels(config, TimestepConfig(), 0.5, LENGTHS, generator(i))
        whole, theirs = draw_levels(config, TimestepConfig(), 0.5, [10], generator(i))
        assert torch.equal(student.values, whole.values)
        assert torch.equal(student.index, whole.index)
        assert torch.equal(teacher.values, theirs.values)


def test_with_times_per_part_the_teacher_sees_each_part_at_the_smaller_of_its_own_two():
    for student, teacher in pairs(NoisingConfig(kind="dual", timesteps="per_part"), count=50):
        assert student.values.shape == (4,)
        assert student.index[:6].max() < 2 <= student.index[6:].min()
        smaller = torch.stack([student.values[:2].min(), student.values[2:].min()])
        assert torch.equal(teacher.values[teacher.index], torch.repeat_interleave(smaller, torch.tensor(LENGTHS)))


def test_times_of_two_parts_are_independent():
    drawn = [student.values for student, _ in pairs(NoisingConfig(timesteps="per_part"))]
    values = torch.stack(drawn)  # (400, 2)
    assert values.shape == (400, 2)
    assert abs(float(torch.corrcoef(values.T)[0, 1])) < 0.15
    assert values.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("timesteps", ["shared", "per_part"])
def test_given_tokens_have_one_small_level_in_both_views(timesteps):
    conditioning_mask = torch.tensor([True] * 6 + [False] * 4)
    for student, teacher in pairs(
        NoisingConfig(kind="dual", timesteps=timesteps), 30, conditioning_mask=conditioning_mask, conditioning_noise=0.1
    ):
        levels = [side.values[side.index] for side in (student, teacher)]
        assert torch.equal(levels[0][:6], levels[1][:6])
        assert levels[0][:6].max() <= 0.1


def test_separation_is_refused_with_times_per_part():
    config = NoisingConfig(kind="dual", mask="exact", attention_separation=True, timesteps="per_part")
    assert [line.split(":")[0] for line in config.problems()] == ["timesteps"]
    assert "is not one of shared, per_part" in NoisingConfig(timesteps="own").problems()[0]


def test_what_is_given_follows_its_table():
    video, audio = torch.tensor([True] * 6 + [False] * 4), torch.tensor([False] * 6 + [True] * 4)
    table = Conditioning({"video": (0.2, video), "audio": (0.3, audio)}, 0.1)
    drawn = torch.stack([table.draw(generator("given", i)) for i in range(4000)])
    for mask, share in ((video, 0.2), (audio, 0.3), (torch.zeros(10, dtype=torch.bool), 0.5)):
        assert (drawn == mask).all(dim=1).float().mean().item() == pytest.approx(share, abs=0.03)
    assert NOTHING_GIVEN.draw(generator("given")) is None


def test_tables_that_leave_nothing_to_learn_are_refused():
    """A batch without a token that carries loss was 0 / 0, and the run died with NaN."""
    with pytest.raises(ConfigError, match=r"condition_on\.first_frame: gives every token"):
        Conditioning({"first_frame": (0.5, torch.ones(4, dtype=torch.bool))})
    with pytest.raises(ConfigError, match=r"sum to 1\.2"):
        Conditioning({"a": (0.6, torch.tensor([True, False])), "b": (0.6, torch.tensor([False, True]))})


class Zero(torch.nn.Module):
    def forward(self, noisy, levels, batch, feature_layers):
        return TrunkOutput(tuple(torch.zeros_like(part) for part in noisy))


def batch(conditioning_mask: torch.Tensor | None = None, weights=(1.0, 1.0)) -> tuple[TokenBatch, NoiseSample]:
    x0 = [torch.full((2, length, 3), float(place + 1)) for place, length in enumerate(LENGTHS)]
    rows = (None, None) if conditioning_mask is None else conditioning_mask.split(LENGTHS, dim=1)
    segments = tuple(
        Segment(name, tokens, torch.zeros(1, tokens.shape[1], 3), conditioning_mask=row, weight=weight)
        for name, tokens, row, weight in zip(("video", "audio"), x0, rows, weights, strict=True)
    )
    levels = NoiseLevels(torch.full((2, 1), 0.5))
    noise = tuple(torch.zeros_like(tokens) for tokens in x0)
    return TokenBatch(segments, Context(torch.zeros(2, dtype=torch.bool))), NoiseSample(noise, levels, levels)


def test_the_loss_of_a_part_is_a_mean_over_its_own_elements_with_its_own_weight():
    """Velocities are -1 and -2, so the mean squares are 1 and 4, however many tokens a part has."""
    tokens, drawn = batch(weights=(1.0, 0.25))
    losses = Objective()(Zero(), None, tokens, drawn, {"video": 12.0, "audio": 8.0})
    assert {name: float(term.mean()) for name, term in losses.items()} == {"flow/video": 1.0, "flow/audio": 4.0}
    assert float(total_loss(losses)) == 1 + 0.25 * 4


def test_a_part_that_is_given_in_every_sample_has_no_loss():
    conditioning_mask = torch.zeros(2, 10, dtype=torch.bool)
    conditioning_mask[:, :6] = True
    tokens, drawn = batch(conditioning_mask)
    losses = Objective()(Zero(), None, tokens, drawn, {"video": 0.0, "audio": 8.0})
    assert list(losses) == ["flow/audio"]
    assert float(total_loss(losses)) == 4.0


def test_parts_of_one_modality_need_names_of_their_own():
    segment = batch()[0].segments[0]
    with pytest.raises(ShapeError, match="name their parts"):
        TokenBatch((segment, segment), Context(torch.zeros(2, dtype=torch.bool)))


def test_tokens_wider_than_the_trunk_are_refused():
    config = MMDiTConfig(size="tiny", width=64, heads=2, channels={"image": 64, "audio": 65})
    assert ["channels.audio: 65 are more than the trunk's width, 64" in line for line in config.problems()] == [True]
