"""p(t) against closed forms and the table of the paper's numbers (mode, masses, mean, median per alpha)."""

import math
from dataclasses import fields

import pytest
import torch

from core.errors import ConfigError
from core.flow import shift_time
from core.keys import generator
from core.schedule import (
    TIMESTEPS,
    TimestepConfig,
    cut_logit_normal_times,
    dimension_shift,
    plateau_masses,
    plateau_start,
    sample_timesteps,
    uniform_times,
)

COUNT = 200_000
# alpha: t*, mass below t*, Z, plateau share, logit-normal mean, logit-normal median
TABLE = {
    1.00: (0.5000, 0.5000, 1.2979, 0.615, 0.500, 0.500),
    1.78: (0.7433, 0.6867, 1.1635, 0.410, 0.617, 0.640),
    2.95: (0.8578, 0.7629, 1.1229, 0.321, 0.711, 0.747),
    4.63: (0.9137, 0.7960, 1.1060, 0.280, 0.784, 0.822),
    6.93: (0.9439, 0.8127, 1.0977, 0.260, 0.837, 0.874),
    10.0: (0.9618, 0.8222, 1.0929, 0.248, 0.876, 0.909),
    15.0: (0.9749, 0.8289, 1.0896, 0.239, 0.911, 0.938),
}


def draw(**settings) -> torch.Tensor:
    return sample_timesteps(TimestepConfig(**settings), COUNT, generator("schedule", str(settings))).double()


@pytest.mark.parametrize("alpha", TABLE)
def test_plateau_numbers(alpha):
    mode, below, z, share, _, _ = TABLE[alpha]
    got_below, got_plateau = plateau_masses(math.log(alpha))
    assert plateau_start(math.log(alpha)) == pytest.approx(mode, abs=6e-5)
    assert got_below == pytest.approx(below, abs=6e-5)
    assert got_below + got_plateau == pytest.approx(z, abs=6e-5)
    assert got_plateau / (got_below + got_plateau) == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize("alpha", TABLE)
def test_plateau_samples_have_the_right_masses_and_are_flat_above_the_mode(alpha):
    mode, below, _, share, _, _ = TABLE[alpha]
    t = draw(kind="plateau_logit_normal", shift=alpha)
    above = t[t > mode]
    assert len(above) / COUNT == pytest.approx(share, abs=0.005)
    assert above.mean().item() == pytest.approx((mode + 1) / 2, abs=0.003)
    # below the mode the law is the logit-normal's, cut at the mode: compare its median
    quantile = math.log(alpha) + math.sqrt(2) * torch.erfinv(torch.tensor(below - 1.0, dtype=torch.float64))
    assert t[t <= mode].median().item() == pytest.approx(torch.sigmoid(quantile).item(), abs=0.006)


@pytest.mark.parametrize("alpha", TABLE)
def test_logit_normal_mean_and_median(alpha):
    t = draw(kind="logit_normal", shift=alpha)
    assert t.mean().item() == pytest.approx(TABLE[alpha][4], abs=0.002)
    assert t.median().item() == pytest.approx(TABLE[alpha][5], abs=0.003)


def test_logit_normal_is_the_sigmoid_of_a_normal_variable():
    """A known bug elsewhere feeds the logit of a uniform variable, whose 5% and 95% quantiles differ."""
    t = draw(kind="logit_normal", std=0.8)
    for level, z in ((0.05, -1.6449), (0.95, 1.6449)):
        assert torch.quantile(t[:100_000], level).item() == pytest.approx(1 / (1 + math.exp(-0.8 * z)), abs=0.004)


def test_uniform_with_shift_has_the_shifted_quantiles():
    t = draw(kind="uniform", shift=2.95)
    for level in (0.1, 0.5, 0.9):
        expected = shift_time(torch.tensor(level, dtype=torch.float64), 2.95).item()
        assert torch.quantile(t[:100_000], level).item() == pytest.approx(expected, abs=0.006)


def test_high_noise_share_replaces_that_share():
    t = draw(kind="logit_normal", shift=1.0, mean=-3.0, high_noise_prob=0.05)
    assert (t > 0.95).double().mean().item() == pytest.approx(0.05, abs=0.003)


# Recorded from RAE @a4d18c4 (src/stage2/transport/transport.py): uniform numbers, and the times in [0, 0.999] that it
# makes of them, for latents of that many numbers; 16 x 16 x 768 are those that it trains on.
RAE_UNIFORM = [0.8880236744880676, 0.10373866558074951, 0.11051994562149048]
RAE_TIMES = {
    ("uniform", 4096): [0.8871356844902039, 0.10363493114709854, 0.11040942370891571],
    ("uniform", 3072): [0.8871356844902039, 0.10363493114709854, 0.11040942370891571],
    ("uniform", 196608): [0.9819679856300354, 0.44475823640823364, 0.4623301327228546],
    ("logit_normal", 4096): [0.7713737487792969, 0.22088225185871124, 0.2272741049528122],
    ("logit_normal", 196608): [0.958975076675415, 0.6626370549201965, 0.6708059906959534],
}
FROM_UNIFORM = {"uniform": uniform_times, "logit_normal": cut_logit_normal_times}


@pytest.mark.parametrize(("kind", "dim"), RAE_TIMES)
def test_times_of_rae(kind, dim):
    config = TimestepConfig(kind, high=0.999, shift=dimension_shift(dim))
    times = FROM_UNIFORM[kind](torch.tensor(RAE_UNIFORM, dtype=torch.float64), config)
    assert times.tolist() == pytest.approx(RAE_TIMES[kind, dim], abs=2e-7)  # theirs are float32


def test_cut_logit_normal_of_rae():
    """Its truncated_logitnormal_sample with mu 0, sigma 1, low 0, high 0.999."""
    u = [0.5124301314353943, 0.5240647196769714, 0.14598840475082397, 0.4809013605117798, 0.9849526882171631]
    expected = [0.5077900886535645, 0.5150849223136902, 0.258497029542923, 0.488029420375824, 0.8974165320396423]
    times = cut_logit_normal_times(torch.tensor(u, dtype=torch.float64), TimestepConfig("logit_normal", high=0.999))
    assert times.tolist() == pytest.approx(expected, abs=2e-7)


def test_dimension_shift():
    assert dimension_shift(16 * 16 * 768) == pytest.approx(6.928203230275509, abs=1e-12)
    assert dimension_shift(64, base=16) == 2
    assert dimension_shift(3072) == dimension_shift(4096) == 1  # never toward data


@pytest.mark.parametrize(("mean", "std", "low", "high"), [(0, 1, 0.3, 0.8), (-1, 0.7, 0, 0.999), (2, 1, 0.05, 1)])
def test_cut_logit_normal_has_the_quantiles_of_the_part_that_is_kept(mean, std, low, high):
    """Against draws of the whole distribution with those outside thrown away."""
    normal = torch.randn(400_000, generator=generator("whole"), dtype=torch.float64)
    whole = torch.sigmoid(mean + std * normal)
    kept = shift_time(whole[(whole >= low) & (whole <= high)], 2.0)
    t = draw(kind="logit_normal", mean=mean, std=std, low=low, high=high, shift=2.0)
    levels = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=torch.float64)
    torch.testing.assert_close(torch.quantile(t, levels), torch.quantile(kept, levels), atol=0.006, rtol=0)
    ends = shift_time(torch.tensor([low, high], dtype=torch.float64), 2.0).float()
    assert ends[0] <= t.min()
    assert t.max() <= ends[1]


def test_far_tails_keep_their_shape():
    """Of a distribution cut to its last 2 in a million, the median is where half of that is below."""
    config = TimestepConfig("logit_normal", low=0.99, high=0.999)
    assert not config.problems()
    median = cut_logit_normal_times(torch.tensor([0.5], dtype=torch.float64), config)
    shares = [0.5 * math.erfc(math.log(t / (1 - t)) / math.sqrt(2)) for t in (0.99, float(median), 0.999)]
    assert shares[0] - shares[1] == pytest.approx(shares[1] - shares[2], rel=1e-8)


def test_ends_of_the_uniform_numbers_are_the_ends_of_the_cut():
    """Also where the density above the cut is less than float64 can tell from none."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for mean in (0.0, -9.0):
        config = TimestepConfig("logit_normal", mean=mean, high=0.999)
        assert cut_logit_normal_times(ends, config).tolist() == pytest.approx([0.0, 0.999], abs=1e-8)


def test_buckets_are_the_middles_of_equal_parts():
    t = draw(kind="uniform", buckets=8)
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [(i + 0.5) / 8 for i in range(8)]
    assert (counts / COUNT - 1 / 8).abs().max() < 0.004
    fine, whole = draw(kind="logit_normal", shift=3.0, buckets=1000), draw(kind="logit_normal", shift=3.0)
    assert fine.mean().item() == pytest.approx(whole.mean().item(), abs=0.002)
    torch.testing.assert_close(fine * 1000 % 1, torch.full_like(fine, 0.5), atol=1e-4, rtol=0)  # float32 times


def test_buckets_round_the_same_draw():
    exact, rounded = (sample_timesteps(TimestepConfig(buckets=n), 1000, generator("same")) for n in (0, 50))
    torch.testing.assert_close(rounded, ((exact.double() * 50).floor() / 50 + 0.01).float())
    certain = TimestepConfig("logit_normal", mean=60.0, buckets=4)  # all times are exactly 1
    assert bool((sample_timesteps(certain, 100, generator("one")) == 0.875).all())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "logit_normal", "low": 0.5, "high": 0.5}, "low, high"),
        ({"kind": "uniform", "high": 1.5}, "low, high"),
        ({"kind": "uniform", "low": -0.1}, "low, high"),
        ({"kind": "logit_normal", "mean": -9.0, "std": 0.5, "low": 0.9}, "low, high"),
        ({"kind": "uniform", "low": 0.5, "high": 0.4}, "low, high"),
        ({"buckets": -1}, "buckets"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    (problem,) = TimestepConfig(**settings).problems()
    assert problem.startswith(f"{named}: ")
    assert not TimestepConfig("logit_normal", high=0.999, shift=dimension_shift(196608), buckets=1000).problems()


def test_wrong_settings_are_named():
    problems = TimestepConfig("logit_normal", std=-1, shift=0, high_noise_prob=2, high_noise_low=1).problems()
    assert [line.split(":")[0] for line in problems] == ["std", "shift", "high_noise_prob", "high_noise_low"]
    with pytest.raises(
        ConfigError, match="kind: 'lognormal' is not one of uniform, logit_normal, plateau_logit_normal"
    ):
        TimestepConfig(kind="lognormal")
    assert TimestepConfig(kind="plateau_logit_normal", std=1.6).problems()


def test_every_kind_has_its_own_settings_alone():
    names = {kind: {entry.name for entry in fields(row)} for kind, row in TIMESTEPS.items()}
    every = {"kind", "shift", "shift_rule", "shift_tokens", "high_noise_prob", "high_noise_low", "buckets"}
    assert names["uniform"] - every == {"low", "high"}
    assert names["logit_normal"] - every == {"mean", "std", "low", "high"}
    assert names["plateau_logit_normal"] - every == {"mean", "std"}
    assert all(
        TimestepConfig(kind).kind == kind and type(TimestepConfig(kind)) is row for kind, row in TIMESTEPS.items()
    )
