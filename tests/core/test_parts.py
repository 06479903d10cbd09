"""Samples of several parts: one draw for all, the loss of each, and what a trunk can carry."""

from __future__ import annotations

import pytest
import torch

from core.errors import ShapeError
from core.keys import generator
from core.noising import NoiseSample, NoisingConfig, draw_levels
from core.objective import Objective, total_loss
from core.schedule import TimestepConfig
from core.trunk.mmdit import MMDiTConfig
from core.types import Context, NoiseLevels, Segment, TokenBatch, TrunkOutput

LENGTHS = (6, 4)


def test_shared_times_are_those_of_one_longer_part():
    config = NoisingConfig(kind="dual")
    for i in range(20):
        student, teacher = draw_levels(config, TimestepConfig(), 0.5, LENGTHS, generator(i))
        whole, theirs = draw_levels(config, TimestepConfig(), 0.5, [10], generator(i))
        assert torch.equal(student.values, whole.values)
        assert torch.equal(student.index, whole.index)
        assert torch.equal(teacher.values, theirs.values)


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
