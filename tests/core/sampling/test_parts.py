"""A level per part: schedules against tables written by hand, runs against closed forms and against parts alone."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from core.errors import ConfigError
from core.keys import generator
from core.sampling.noise import part_levels
from core.sampling.parts import PartSampling
from core.sampling.plan import level_schedule
from core.sampling.sampler import SOLVERS, SamplerConfig, initial_noise, sample
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.types import Context, Segment, TokenBatch, TrunkOutput
from tests.core.fields import Field, gaussian, to_point

NAMES = ("video", "action")
FIXED = [name for name, solver in SOLVERS.items() if not solver.adaptive]
ODES = ["euler", "midpoint", "heun", "rk4"]


def settings(solver: str = "euler", steps: int = 4, common: dict | None = None, **parts: dict) -> SamplerConfig:
    return SamplerConfig(
        solver, steps, **(common or {}), parts={name: PartSampling(**part) for name, part in parts.items()}
    )


def two_parts(samples: int = 2, conditioning_mask=None, dtype=torch.float64, names=NAMES) -> TokenBatch:
    """Video: 3 tokens of 4 channels; action: 2 of 5."""
    segments = []
    for name, tokens, channels in zip(NAMES, (3, 2), (4, 5), strict=True):
        x0 = torch.randn(samples, tokens, channels, generator=generator("x0", name)).to(dtype)
        ids = torch.arange(tokens)[None, :, None].expand(1, tokens, 3)
        mask = conditioning_mask.get(name) if conditioning_mask else None
        segments.append(Segment(name, x0, ids, conditioning_mask=mask))
    context = Context(torch.zeros(samples, dtype=torch.bool))
    kept = tuple(segment for segment in segments if segment.name in names)
    return TokenBatch(kept, context, tuple(map(str, range(samples))))


def noise_of(batch: TokenBatch) -> tuple[torch.Tensor, ...]:
    return tuple(part.double() for part in initial_noise(0, batch))


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ({}, [(1, 1), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25), (0, 0)]),
        ({"video": {"steps": 2}}, [(1, 1), (1, 0.75), (0.5, 0.5), (0.5, 0.25), (0, 0)]),
        (
            {"video": {"steps": 3}, "action": {"steps": 5}},
            [(1, 1), (1, 0.8), (2 / 3, 0.6), (2 / 3, 0.4), (1 / 3, 0.2), (0, 0)],
        ),
        ({"video": {"stop_at": 0.6}}, [(1, 1), (0.75, 0.75), (0.6, 0.5), (0.6, 0.25), (0.6, 0)]),
        (
            {"video": {"steps": 2, "stop_at": 0.6, "after": ""}, "action": {"steps": 3, "after": "video"}},
            [(1, 1), (0.8, 1), (0.6, 1), (0.6, 2 / 3), (0.6, 1 / 3), (0.6, 0)],
        ),
        ({"video": {"shift": 3.0}}, [(1, 1), (0.9, 0.75), (0.75, 0.5), (0.5, 0.25), (0, 0)]),
        # Before the shift, the level 0.5 is at 0.25: steps at 1, 0.625, 0.25.
        (
            {"video": {"shift": 3.0, "steps": 2, "stop_at": 0.5}},
            [(1, 1), (1, 0.75), (5 / 6, 0.5), (5 / 6, 0.25), (0.5, 0)],
        ),
        ({"video": {"absent": True}, "action": {"steps": 2}}, [(1, 1), (1, 0.5), (1, 0)]),
        ({"video": {"omit": True}, "action": {"steps": 2, "after": "video"}}, [(1, 1), (1, 0.5), (1, 0)]),
        ({"video": {"stop_at": 0.8}, "action": {"stop_at": 0.6}}, [(1, 1), (0.8, 0.75), (0.8, 0.6)]),
    ],
)
def test_schedules(parts, rows):
    config = settings(**parts)
    assert config.problems() == []
    schedule = level_schedule(config, NAMES)
    assert len(schedule.rows) == len(rows) == schedule.steps + 1
    for seen, wanted in zip(schedule.rows, rows, strict=True):
        assert seen == pytest.approx(wanted, abs=1e-12)
    assert [name for name, lands in zip(NAMES, schedule.lands, strict=True) if lands] == [
        name for name in NAMES if not {"absent", "omit", "stop_at"} & set(parts.get(name, {}))
    ]


def test_a_stop_is_exactly_where_it_was_asked_for():
    for stop in (0.6, 0.8, 0.1, 0.123):
        for shift in (1.0, 3.0, 6.93, 15.0):
            for own in ({}, {"steps": 7}):
                schedule = level_schedule(settings(steps=50, video={"stop_at": stop, "shift": shift, **own}), NAMES)
                assert schedule.rows[-1] == (stop, 0.0)
                assert all(a[0] >= b[0] and a[1] >= b[1] for a, b in pairwise(schedule.rows))


def test_one_row_of_levels_is_one_level():
    batch = two_parts(conditioning_mask={"action": torch.tensor([[True, False]] * 2)})
    same = part_levels(batch, (0.5, 0.5), (0.1, 0.1))
    assert same.values.tolist() == [pytest.approx([0.5, 0.1])] * 2
    assert same.per_token(5)[0].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.1, 0.5])
    own = part_levels(batch, (0.75, 0.5), (0.3, 0.1))
    assert own.per_token(5)[1].tolist() == pytest.approx([0.75, 0.75, 0.75, 0.1, 0.5])
    assert own.values.shape == (2, 3)  # 0.3 is of no token
    assert part_levels(two_parts(), (0.5, 0.5), (0.1, 0.1)).index is None


OWN = {"video": {"steps": 3, "shift": 2.0}, "action": {"steps": 5}}
TURNS = {"video": {"steps": 3, "stop_at": 0.6, "tweedie": False}, "action": {"steps": 5, "after": "video"}}


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("parts", [OWN, TURNS], ids=["together", "in turn"])
def test_parts_that_ignore_each_other_are_sampled_as_if_alone(solver, parts):
    """Bit for bit, whatever else a step moves; with steps that land and steps that do not in one of them."""
    batch = two_parts()
    noise = noise_of(batch)
    draws = {
        name: torch.randn(9, *x.shape, generator=generator("w", name)) for name, x in zip(NAMES, noise, strict=True)
    }
    config = settings(solver, 4, {"correct_last": False} if solver == "heun" else {}, **parts)
    moves = level_schedule(config, NAMES)

    def increments(step):
        return tuple(draws[name][step] for name in NAMES)

    made = dict(zip(NAMES, sample(Field(gaussian(0.4, 0.5)), batch, noise, config, increments=increments), strict=True))
    for place, name in enumerate(NAMES):
        own = [step for step in range(moves.steps) if moves.moving(step)[place]]
        part = replace(config.parts[name], after="")
        alone = replace(config, parts={name: part})
        (wanted,) = sample(
            Field(gaussian(0.4, 0.5)),
            two_parts(names=(name,)),
            (noise[place],),
            alone,
            increments=lambda step, own=own, name=name: (draws[name][own[step]],),
        )
        assert torch.equal(made[name], wanted), name


class LevelOfTheOther(torch.nn.Module):
    """The velocity of each part is the level of the other one."""

    def forward(self, noisy, levels, batch):
        t = levels.per_token(sum(batch.lengths)).split(batch.lengths, dim=1)
        return TrunkOutput(
            (torch.ones_like(noisy[0]) * t[1][:, :1, None], torch.ones_like(noisy[1]) * t[0][:, :1, None])
        )


@pytest.mark.parametrize("solver", ODES)
def test_the_way_through_the_levels_of_two_parts(solver):
    """x_p(end) - x_p(start) is the integral of t_q dt_p. Euler has the sum of the beginnings, the others that of the
    trapezoids, which are exact on straight pieces."""
    batch = two_parts()
    noise = noise_of(batch)
    config = settings(solver, 4, **OWN)
    rows = level_schedule(config, NAMES).rows
    made = sample(LevelOfTheOther(), batch, noise, config)
    for p, q in ((0, 1), (1, 0)):
        seen = (made[p] - noise[p]).flatten()
        mean = (lambda a, b: a) if solver == "euler" else (lambda a, b: (a + b) / 2)
        wanted = sum((b[p] - a[p]) * mean(a[q], b[q]) for a, b in pairwise(rows))
        assert seen.tolist() == pytest.approx([wanted] * len(seen), abs=1e-7)  # levels reach a trunk in float32


def test_a_part_that_stops_early_is_on_its_way_or_its_expected_data():
    """All data in one point: the state is on the straight line, and its expected data are the point."""
    batch = two_parts()
    noise = noise_of(batch)
    for tweedie in (True, False):
        trunk = Field(to_point(1.5))
        config = settings(
            video={"steps": 3, "stop_at": 0.6, "tweedie": tweedie},
            action={"after": "video"},
            common={"batch_invariant": False},
        )
        video, action = sample(trunk, batch, noise, config)
        on_way = 1.5 + 0.6 * (noise[0] - 1.5)
        torch.testing.assert_close(video, torch.full_like(video, 1.5) if tweedie else on_way, atol=1e-6, rtol=0)
        torch.testing.assert_close(action, torch.full_like(action, 1.5), atol=1e-6, rtol=0)
        assert len(trunk.calls) == 3 + 4 + tweedie


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_absent_part_stays_noise_at_level_1_and_is_seen(solver):
    if SOLVERS[solver].adaptive:
        pytest.importorskip("torchdiffeq")
    batch = two_parts()
    noise = noise_of(batch)
    trunk = Field(gaussian(0.0, 1.0))
    config = settings(solver, video={"absent": True}, common={"batch_invariant": False})
    video, action = sample(trunk, batch, noise, config)
    assert torch.equal(video, noise[0])
    assert not torch.equal(action, noise[1])
    for noisy, levels, seen in trunk.calls:
        assert torch.equal(noisy[0], noise[0])
        assert (levels.per_token(5)[:, :3] == 1).all()
        assert not seen.segments[0].loss_mask().any()
    assert float(trunk.calls[-1][1].per_token(5)[0, 4]) < 0.5


def test_an_omitted_part_is_not_there_and_changes_no_noise_of_the_others():
    batch = two_parts()
    noise = noise_of(batch)
    trunk = Field(gaussian(0.0, 1.0))
    for solver in ("euler", "sde"):
        seen = []
        config = settings(solver, video={"omit": True})
        video, action = sample(
            trunk, batch, noise, config, seed=4, progress=lambda n, x, seen=seen: seen.append(len(x))
        )
        assert torch.equal(video, noise[0])
        assert seen == [1] * 4
        if solver == "euler":
            (alone,) = sample(trunk, two_parts(names=("action",)), noise[1:], settings())
            assert torch.equal(action, alone)
    assert all(len(noisy) == 1 for noisy, _, _ in trunk.calls)


def test_guidance_of_each_part_and_no_null_half_where_nobody_looks_at_it():
    """LingBot-VA's way: video in 3 guided steps to 0.6, then actions in 5 unguided ones."""
    trunk = Field(lambda x, t, dropped: torch.where(dropped, 1.0, 3.0) * torch.ones_like(x))
    batch = two_parts()
    noise = noise_of(batch)
    parts = {
        "video": {"steps": 3, "stop_at": 0.4, "cfg_scale": 5.0, "tweedie": False},
        "action": {"steps": 5, "after": "video"},
    }
    video, action = sample(trunk, batch, noise, settings(common={"batch_invariant": False}, **parts))
    assert [len(noisy[0]) for noisy, _, _ in trunk.calls] == [4] * 3 + [2] * 5
    torch.testing.assert_close(noise[0] - video, torch.full_like(video, 0.6 * (1 + 5 * 2)))
    torch.testing.assert_close(noise[1] - action, torch.full_like(action, 3.0))

    trunk.calls.clear()
    parts = {"action": {"cfg_scale": 1.0}, "video": {"cfg_interval": [0.5, 0.75]}}
    common = {"cfg_scale": 2.0, "batch_invariant": False}
    video, action = sample(trunk, batch, noise, settings(common=common, **parts))
    assert [len(noisy[0]) for noisy, _, _ in trunk.calls] == [2, 4, 4, 2]
    torch.testing.assert_close(noise[0] - video, torch.full_like(video, (3 + 5 + 5 + 3) / 4))
    torch.testing.assert_close(noise[1] - action, torch.full_like(action, 3.0))


def test_given_tokens_at_a_level_of_their_own_part():
    """A noisy first frame beside clean actions."""
    mask = {"video": torch.tensor([[True, False, False]] * 2), "action": torch.tensor([[True, False]] * 2)}
    batch = two_parts(conditioning_mask=mask)
    noise = noise_of(batch)
    trunk = Field(gaussian(0.0, 1.0))
    config = settings(action={"conditioning_noise": 0.0, "steps": 2}, common={"conditioning_noise": 0.125})
    made = sample(trunk, batch, noise, replace(config, batch_invariant=False))
    for name, part, segment in zip(NAMES, made, batch.segments, strict=True):
        assert torch.equal(part[mask[name]], segment.x0[mask[name]])
        assert (part[~mask[name]] != noise[NAMES.index(name)][~mask[name]]).all()
    for noisy, levels, _ in trunk.calls:
        t = levels.per_token(5)
        assert (t[:, 0] == 0.125).all()
        assert (t[:, 3] == 0).all()
        assert torch.equal(noisy[1][:, 0], batch.segments[1].x0[:, 0])


@pytest.mark.parametrize("solver", ["sde", "sde_heun"])
def test_statistics_of_the_sde_where_a_part_stops(solver):
    """At 0.6 a gaussian has the mean 0.4 m and the variance 0.4^2 s^2 + 0.6^2; 24,576 numbers."""
    mean, deviation, stop = 0.7, 0.5, 0.6
    x0 = torch.zeros(8, 24, 128, dtype=torch.float64)
    ids = torch.zeros(1, 24, 3, dtype=torch.long)
    segments = tuple(Segment(name, x0, ids) for name in NAMES)
    batch = TokenBatch(segments, Context(torch.zeros(8, dtype=torch.bool)), tuple(map(str, range(8))))
    common = {"batch_invariant": False}
    config = settings(
        solver, 60, common, video={"steps": 40, "stop_at": stop, "tweedie": False}, action={"after": "video"}
    )
    video, action = sample(Field(gaussian(mean, deviation)), batch, noise_of(batch), config, seed=3)
    wanted = ((1 - stop) * mean, ((1 - stop) ** 2 * deviation**2 + stop**2) ** 0.5)
    assert (float(video.mean()), float(video.std())) == pytest.approx(wanted, abs=0.02)
    assert (float(action.mean()), float(action.std())) == pytest.approx((mean, deviation), abs=0.05)


def trunk_of_two_parts() -> MMDiT:
    channels = {"video": 4, "action": 5}
    trunk = MMDiT(
        MMDiTConfig(size="tiny", width=48, heads=2, double_blocks=1, single_blocks=1, channels=channels)
    ).eval()
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():  # the zero ones would hide everything
            parameter.copy_(torch.randn(parameter.shape, generator=generator("weights", name)) * 0.1)
    return trunk


def texts(batch: TokenBatch) -> TokenBatch:
    size = batch.size
    tokens = torch.randint(1, 60, (size, 3, 4), generator=generator("texts"))
    return replace(batch, context=replace(batch.context, tokens=tokens, valid=torch.ones(size, 3, dtype=torch.bool)))


def test_a_trunk_of_two_parts_runs_with_one_of_them():
    """The fast policy: omitting the video is a batch without it, and another thing than an absent one."""
    trunk, batch = trunk_of_two_parts(), texts(two_parts(dtype=torch.float32))
    noise = initial_noise(0, batch)
    made = {how: sample(trunk, batch, noise, settings(video={how: True}))[1] for how in ("omit", "absent")}
    alone = texts(two_parts(dtype=torch.float32, names=("action",)))
    (wanted,) = sample(trunk, alone, noise[1:], settings())
    assert torch.equal(made["omit"], wanted)
    assert (made["absent"] - made["omit"]).abs().max() > 1e-3
    joint = sample(trunk, batch, noise, settings())[1]
    assert (made["absent"] - joint).abs().max() > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        settings("heun", common={"cfg_scale": 2.0}, video={"steps": 3, "stop_at": 0.6}, action={"after": "video"}),
        settings("sde", video={"steps": 3, "cfg_scale": 3.0}),
        settings(video={"absent": True}),
    ],
)
def test_same_bytes_for_any_batch_size(config):
    trunk, batch = trunk_of_two_parts(), texts(two_parts(4, dtype=torch.float32))
    together = sample(trunk, batch, initial_noise(5, batch), config, seed=5)
    for i in range(4):
        segments = tuple(replace(segment, x0=segment.x0[i : i + 1]) for segment in batch.segments)
        context = batch.context
        context = Context(context.dropped[:1], tokens=context.tokens[i : i + 1], valid=context.valid[:1])
        one = TokenBatch(segments, context, (batch.keys[i],))
        for part, whole in zip(sample(trunk, one, initial_noise(5, one), config, seed=5), together, strict=True):
            assert part.numpy().tobytes() == whole[i : i + 1].numpy().tobytes()


@pytest.mark.parametrize(
    ("solver", "parts", "problem"),
    [
        ("euler", {"video": {"stop_at": 1.0}}, "parts.video.stop_at: 1.0 must lie in [0, 1)"),
        ("euler", {"video": {"stop_at": float("nan")}}, "parts.video.stop_at: nan must lie in [0, 1)"),
        ("euler", {"video": {"steps": 0}}, "parts.video.steps: 0 must be at least 1"),
        ("sde", {"video": {"steps": 1}}, "parts.video.steps: 1 must be at least 2"),
        ("euler", {"video": {"shift": -1.0}}, "parts.video.shift: -1.0 must be above 0"),
        ("euler", {"video": {"cfg_interval": [0.7, 0.3]}}, "parts.video.cfg_interval: [0.7, 0.3] must be two"),
        ("euler", {"video": {"conditioning_noise": 1.0}}, "parts.video.conditioning_noise: 1.0 must lie in [0, 1)"),
        ("euler", {"video": {"tweedie": False}}, "parts.video.tweedie: false is not read with stop_at 0"),
        ("euler", {"video": {"absent": True, "omit": True}}, "parts.video.omit: has no tokens, and absent has them"),
        ("euler", {"video": {"absent": True, "steps": 3}}, "parts.video.steps: is not read with absent"),
        ("euler", {"video": {"omit": True, "shift": 3.0}}, "parts.video.shift: is not read with omit"),
        ("euler", {"video": {"after": "video"}}, "parts.video.after: 'video' waits, in turn, for video"),
        ("dopri5", {"video": {"steps": 3, "stop_at": 0.5}}, "parts.video.steps, stop_at: not with dopri5"),
        ("dopri5", {"action": {"after": "video"}}, "parts.action.after: not with dopri5"),
    ],
)
def test_settings_of_parts_that_do_not_go_together(solver, parts, problem):
    (line,) = settings(solver, **parts).problems()
    assert line.startswith(problem)


def test_parts_that_wait_for_each_other_or_start_below_their_stop():
    found = settings(video={"after": "action"}, action={"after": "video"}).problems()
    assert [line.split(":")[0] for line in found] == ["parts.video.after", "parts.action.after"]
    (line,) = settings(common={"start": 0.5}, video={"stop_at": 0.6}).problems()
    assert line == "parts.video.stop_at: 0.6 must lie between the end and the start, 0 and 0.5"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"vidoe": {"steps": 3}}, "parts.vidoe: is not one of video, action. Did you mean: 'video'?"),
        (
            {"action": {"after": "vidio"}},
            "parts.action.after: 'vidio' is not one of video, action. Did you mean: 'video'?",
        ),
        (
            {"video": {"absent": True}, "action": {"omit": True}},
            "parts: nothing is left to make; absent or omitted: video, action",
        ),
    ],
)
def test_parts_that_a_batch_does_not_have(parts, problem):
    batch = two_parts()
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        sample(Field(to_point(0.0)), batch, noise_of(batch), settings(**parts))


@pytest.mark.parametrize("how", ["absent", "omit"])
def test_given_tokens_of_a_part_of_which_nothing_is_made(how):
    batch = two_parts(conditioning_mask={"video": torch.tensor([[True, False, False]] * 2)})
    with pytest.raises(ConfigError, match=rf"^parts\.video\.{how}: some of its tokens are given"):
        sample(Field(to_point(0.0)), batch, noise_of(batch), settings(video={how: True}))
