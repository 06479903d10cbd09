"""p(t) against closed forms and the table of the paper's numbers (mode, masses, mean, median per alpha)."""

import math

import pytest
import torch

from core.flow import shift_time
from core.keys import generator
from core.schedule import TimeConfig, plateau_masses, plateau_start, sample_times

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
    return sample_times(TimeConfig(**settings), COUNT, generator("schedule", str(settings))).double()


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
    t = draw(kind="logit_normal", shift=1.0, mean=-3.0, high_noise_share=0.05)
    assert (t > 0.95).double().mean().item() == pytest.approx(0.05, abs=0.003)


def test_wrong_settings_are_named():
    problems = TimeConfig(kind="lognormal", std=-1, shift=0, high_noise_share=2, high_noise_low=1).problems()
    assert [line.split(":")[0] for line in problems] == ["kind", "std", "shift", "high_noise_share", "high_noise_low"]
    assert TimeConfig(kind="plateau_logit_normal", std=1.6).problems()
