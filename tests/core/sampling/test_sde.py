"""The SDEs: every form keeps the marginals of Gaussian data, and puts in the noise that its formula says."""

import math

import pytest
import torch

from core.sampling.sampler import SamplerConfig, initial_noise, sample
from core.sampling.sde import DIFFUSION_FORMS, diffusion
from tests.core.fields import Field, batch_of, gaussian

MEAN, DEVIATION = 0.7, 0.5
FORMS = [(form, 0.99 if form == "sbdm" else 1.0) for form in DIFFUSION_FORMS]


@pytest.mark.parametrize("solver", ["sde", "sde_heun"])
@pytest.mark.parametrize(("form", "start"), FORMS)
def test_every_form_arrives_at_the_data(form, start, solver):
    """Mean and deviation of 32,768 numbers, by 100 steps; worst seen 3e-3 and 1e-2 off.

    The last step is Tweedie's: where `constant` goes from 0.04 to 0 by its mean, it takes away more than is there.
    """
    batch = batch_of(8, 64, 64)
    noise = (initial_noise(3, batch)[0].double(),)
    config = SamplerConfig(solver, 100, start=start, diffusion_form=form, last_step="tweedie", batch_invariant=False)
    (final,) = sample(Field(gaussian(MEAN, DEVIATION)), batch, noise, config, seed=3)
    assert float(final.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(final.std()) == pytest.approx(DEVIATION, abs=0.015)


@pytest.mark.parametrize("solver", ["sde", "sde_heun"])
@pytest.mark.parametrize(("form", "start"), FORMS)
def test_the_noise_of_a_step(form, start, solver):
    """Where the drift is zero, a step from t to t - dt has variance 2 D(t) dt."""
    batch = batch_of(4, 64, 64)
    expected_noise = Field(lambda x, t, dropped: -x / (1 - t).clamp_min(1e-6))  # its E[x1 | x] = x + (1 - t) v is 0
    seen = []
    config = SamplerConfig(
        solver, 3, start=0.9, end=0.6, diffusion_form=form, diffusion_norm=0.8, last_step="none", batch_invariant=False
    )
    increments = {}

    def record(step):
        increments[step] = torch.randn(4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        return (increments[step],)

    zero = (torch.zeros(4, 64, 64, dtype=torch.float64),)
    sample(expected_noise, batch, zero, config, increments=record, progress=lambda step, x: seen.append(x[0]))
    t, after = config.timesteps()[:2]
    d = diffusion(form, 0.8)(t)
    scale = 1.0  # of the noise: what the drift v = -x / (1 - t) makes of it within the step
    if solver == "sde_heun":
        dt = after - t
        middle = 1 - dt / (1 - t)
        scale = 1 + 0.5 * dt * (-1 / (1 - t) - middle / (1 - after))
    wanted = scale * math.sqrt(2 * d * (t - after)) * increments[0]
    torch.testing.assert_close(seen[0], wanted, atol=1e-12, rtol=1e-9)


def test_forms():
    """Values that can be checked by hand; t = 1 is noise."""
    quarter = {form: diffusion(form, 2.0)(0.25) for form in DIFFUSION_FORMS}
    assert quarter == pytest.approx(
        {
            "constant": 2.0,
            "sbdm": 2 / 3,
            "sigma": 0.5,
            "linear": 0.5,
            "decreasing": 0.25 * (1 - math.sqrt(2)) ** 2,
            "increasing-decreasing": 1.0,
        }
    )
    assert diffusion("decreasing", 1.0)(1.0) == 1.0
    assert diffusion("decreasing", 1.0)(0.0) == 0.0


@pytest.mark.parametrize("form", ["constant", "decreasing"])
def test_last_steps(form):
    """On data at one point, the Euler step lands on it from anywhere; Tweedie's formula is the same step."""
    batch = batch_of(2, 3, 2)
    noise = (initial_noise(0, batch)[0].double(),)
    finals = {}
    for last_step in ("mean", "tweedie", "euler"):
        config = SamplerConfig("sde", 9, diffusion_form=form, last_step=last_step, last_step_size=0.1)
        to_point = Field(lambda x, t, dropped: (x - 1.5) / t)
        (finals[last_step],) = sample(to_point, batch, noise, config)
    torch.testing.assert_close(finals["euler"], torch.full_like(noise[0], 1.5), atol=1e-12, rtol=0)
    assert torch.equal(finals["tweedie"], finals["euler"])
    assert float((finals["mean"] - 1.5).abs().max()) > 1e-3


def test_without_a_last_step_the_noise_stays():
    """The state at `end` has the marginal of that time."""
    batch = batch_of(8, 64, 64)
    noise = (initial_noise(1, batch)[0].double(),)
    config = SamplerConfig("sde", 100, end=0.2, last_step="none", batch_invariant=False)
    (final,) = sample(Field(gaussian(MEAN, DEVIATION)), batch, noise, config)
    assert float(final.mean()) == pytest.approx(0.8 * MEAN, abs=0.02)
    assert float(final.std()) == pytest.approx(math.hypot(0.8 * DEVIATION, 0.2), abs=0.02)
