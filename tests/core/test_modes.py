"""Training modes: what each of them draws, in which shares, and that a sample's draws hang on its key alone."""

from __future__ import annotations

import pytest
import torch

from core.errors import ConfigError
from core.keys import generator
from core.modes import ALL_SHARED, Mode, Modes, draw_mode_levels
from core.noising import NoisingConfig, SampleLevels, draw_levels, stack_levels
from core.schedule import TimestepConfig

LENGTHS = (6, 4)
UNIFORM = TimestepConfig()
VIDEO, ACTION = torch.tensor([True] * 6 + [False] * 4), torch.tensor([False] * 6 + [True] * 4)
DUAL = NoisingConfig("dual")


def pairs(config: NoisingConfig, modes: Modes = ALL_SHARED, mode: Mode | None = None, count: int = 400):
    return [draw_mode_levels(config, UNIFORM, 0.5, LENGTHS, generator("parts", i), modes, mode) for i in range(count)]


def per_token(levels: SampleLevels) -> torch.Tensor:
    return levels.values[levels.index]


def table(**modes: Mode) -> Modes:
    """All equally often."""
    return Modes({name: (1 / len(modes), mode) for name, mode in modes.items()}, noise=(0.2, 0.1))


def test_shared_alone_is_one_draw_for_all_tokens():
    for i in range(20):
        for config in (DUAL, NoisingConfig("dual", mask="exact", attention_separation=True), NoisingConfig()):
            seen = draw_mode_levels(config, UNIFORM, 0.5, LENGTHS, generator(i))
            for ours, plain in zip(seen, draw_levels(config, UNIFORM, 0.5, [10], generator(i)), strict=True):
                assert torch.equal(ours.values, plain.values)
                assert (ours.index is None) == (plain.index is None)
                assert ours.index is None or torch.equal(ours.index, plain.index)
                assert ours.separate == plain.separate


def test_other_modes_of_a_stream_change_no_draw_of_the_shared_one():
    modes = table(video=Mode(given=VIDEO), alone=Mode(independent=True), absent=Mode(absent=ACTION))
    for i in range(20):
        seen = draw_mode_levels(DUAL, UNIFORM, 0.5, LENGTHS, generator(i), modes, modes.rest)
        for ours, plain in zip(seen, draw_levels(DUAL, UNIFORM, 0.5, [10], generator(i)), strict=True):
            wanted = plain.values[torch.zeros(10, dtype=torch.long) if plain.index is None else plain.index]
            assert torch.equal(per_token(ours), wanted)


def test_given_tokens_are_those_of_one_draw_with_a_conditioning_mask():
    """As they were before there were other modes: runs that have only these go on with the same bits."""
    modes = Modes({"video_given": (0.2, Mode(given=VIDEO))}, noise=(0.2, 0.2))
    for mode in modes.all:
        mask = mode.conditioning_mask(10)
        for i in range(20):
            seen = draw_mode_levels(DUAL, UNIFORM, 0.5, LENGTHS, generator(i), modes, mode)
            plain = draw_levels(DUAL, UNIFORM, 0.5, [10], generator(i), mask, 0.2)
            for ours, theirs in zip(seen, plain, strict=True):
                assert torch.equal(ours.index, theirs.index)
                assert torch.equal(ours.values[ours.index], theirs.values[theirs.index])
                assert ours.values.shape == theirs.values.shape


def test_with_a_draw_for_each_part_the_teacher_sees_it_at_the_smaller_of_its_own_two():
    for student, teacher in pairs(DUAL, Modes(rest=Mode(independent=True)), count=50):
        assert student.values.shape == (4,)
        assert student.index[:6].max() < 2 <= student.index[6:].min()
        smaller = torch.stack([student.values[:2].min(), student.values[2:].min()])
        assert torch.equal(per_token(teacher), torch.repeat_interleave(smaller, torch.tensor(LENGTHS)))


def test_draws_for_each_part_are_independent():
    values = torch.stack([s.values for s, _ in pairs(NoisingConfig(), Modes(rest=Mode(independent=True)))])  # (400, 2)
    assert values.shape == (400, 2)
    assert abs(float(torch.corrcoef(values.T)[0, 1])) < 0.15
    assert values.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("teacher", ["min", "earlier"])
def test_given_and_absent_parts_have_one_level_in_both_views(teacher):
    last = torch.arange(10) >= 8
    modes = table(given=Mode(given=VIDEO), absent=Mode(absent=VIDEO), both=Mode(given=last, absent=VIDEO))
    config = NoisingConfig("dual", teacher=teacher)
    highest = 0.0
    for name, (_, mode) in modes.table.items():
        for student, cleaner in pairs(config, modes, mode, 60):
            for side in (student, cleaner):
                held = per_token(side)[:6]
                assert (held == held[0]).all()
                assert (held == 1).all() if name != "given" else (held <= 0.2).all()
                if name == "both":
                    assert per_token(side)[8:].max() <= 0.1
            assert torch.equal(per_token(student)[:6], per_token(cleaner)[:6])
            assert (per_token(cleaner) <= per_token(student)).all()
            highest = max(highest, float(per_token(student)[0])) if name == "given" else highest
    assert 0.15 < highest <= 0.2


def test_a_part_that_leads_is_cleaner_by_beta():
    """With t uniform and b of Beta(1.5, 1), of mean 0.6: the mean of t + (1 - t) b is 0.8, and of b itself 0.6."""
    mode = Mode(leads=(1, 0))
    modes = Modes({"action_leads_video": (1.0, mode)})
    shares = []
    for student, teacher in pairs(DUAL, modes, mode, 2000):
        action, video = student.values[:2], student.values[2:]
        assert (video >= action).all()
        assert student.index[:6].min() >= 2 > student.index[6:].max()
        assert torch.equal(per_token(teacher)[6:], action.min().expand(4))
        assert torch.equal(per_token(teacher)[:6], video.min().expand(6))
        share = (video - action) / (1 - action)
        torch.testing.assert_close(share[0], share[1], atol=1e-3, rtol=0)
        shares.append(share[0])
    b = torch.stack(shares)
    assert float(b.mean()) == pytest.approx(0.6, abs=0.02)
    assert float((b < 0.5).float().mean()) == pytest.approx(0.5**1.5, abs=0.03)  # the distribution of Beta(1.5, 1)


def test_a_part_that_is_drawn_alone_has_its_own_distribution():
    late = TimestepConfig(low=0.9)
    own = (None, late)
    modes = Modes(
        {
            "independent": (0.2, Mode(independent=True)),
            "video_given": (0.2, Mode(given=VIDEO)),
            "action_leads_video": (0.2, Mode(leads=(1, 0))),
            "video_leads_action": (0.2, Mode(leads=(0, 1))),
        },
        timesteps=own,
    )
    config = NoisingConfig()
    drawn = {
        name: torch.stack([per_token(student)[6] for student, _ in pairs(config, modes, mode, 200)])
        for name, mode in {"shared": modes.rest, **{name: row[1] for name, row in modes.table.items()}}.items()
    }
    for name in ("independent", "video_given", "action_leads_video"):
        assert drawn[name].min() >= 0.9
    assert drawn["shared"].mean() == pytest.approx(0.5, abs=0.08)
    assert drawn["video_leads_action"].min() < 0.9  # its levels are made of those of the video


@pytest.mark.parametrize("kind", ["homogeneous", "dual", "full_masking", "diffusion_forcing"])
@pytest.mark.parametrize("teacher", ["min", "earlier"])
def test_samples_of_all_modes_make_one_batch(kind, teacher):
    modes = table(
        **{"given": Mode(given=VIDEO), "absent": Mode(absent=ACTION), "own": Mode(independent=True)},
        **({} if kind == "diffusion_forcing" else {"leads": Mode(leads=(1, 0))}),
        some=Mode(given=torch.arange(10) < 2),
    )
    rows = [
        draw_mode_levels(NoisingConfig(kind, teacher=teacher), UNIFORM, 0.5, LENGTHS, generator(i), modes, mode)
        for i, mode in enumerate(modes.all)
    ]
    for side in zip(*rows, strict=True):
        levels = stack_levels(list(side))
        assert levels.per_token(10).shape == (len(rows), 10)
        for row, alone in zip(levels.per_token(10), side, strict=True):
            assert torch.equal(row, per_token(alone))
        assert 0 <= levels.values.min() <= levels.values.max() <= 1
    alone = draw_mode_levels(
        NoisingConfig(kind, teacher=teacher), UNIFORM, 0.5, LENGTHS, generator(1), modes, modes.all[1]
    )
    assert torch.equal(alone[0].values, rows[1][0].values)


def test_modes_follow_their_shares():
    given, absent = Mode(given=VIDEO), Mode(absent=ACTION)
    modes = Modes({"video_given": (0.2, given), "action_absent": (0.3, absent)})
    drawn = [modes.draw(generator("given", i)) for i in range(4000)]
    for mode, share in ((given, 0.2), (absent, 0.3), (modes.rest, 0.5)):
        assert sum(seen is mode for seen in drawn) / 4000 == pytest.approx(share, abs=0.03)
    assert modes.conditions()
    assert not ALL_SHARED.conditions()
    assert ALL_SHARED.draw(generator("given")) is ALL_SHARED.rest


def test_tables_that_leave_nothing_to_learn_are_refused():
    """A batch without a token that carries loss was 0 / 0, and the run died with NaN."""
    with pytest.raises(ConfigError, match=r"modes\.first_frame: every token of a sample is given or absent"):
        Modes({"first_frame": (0.5, Mode(given=torch.ones(4, dtype=torch.bool)))})
    with pytest.raises(ConfigError, match=r"modes\.x: every token"):
        Modes({"x": (0.5, Mode(given=VIDEO, absent=ACTION))})
    with pytest.raises(ConfigError, match=r"modes\.shared: every token"):
        Modes(rest=Mode(given=torch.ones(4, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=r"sum to 1\.2"):
        Modes({"a": (0.6, Mode(given=VIDEO)), "b": (0.6, Mode(given=ACTION))})


def test_modes_that_the_noising_cannot_have():
    separate = NoisingConfig("dual", mask="exact", attention_separation=True)
    for mode in (Mode(given=VIDEO), Mode(independent=True), Mode(leads=(0, 1))):
        with pytest.raises(ConfigError, match=r"^noising\.attention_separation"):
            pairs(separate, Modes(rest=mode), count=1)
    with pytest.raises(ConfigError, match=r"^noising\.kind: 'diffusion_forcing'"):
        pairs(NoisingConfig("diffusion_forcing"), Modes(rest=Mode(leads=(0, 1))), count=1)
