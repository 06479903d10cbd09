"""SDE forms, last steps and methods of the SiT code, and the grids of RAE, on velocities that are a formula."""

import re

import pytest
import torch

from core.flow import shift_time
from core.sampling.sampler import SamplerConfig, sample
from tests.core.fields import Field, batch_of
from tests.parity.common import golden, golden_json, worst

SIT, RAE = golden("sit_sde_forms"), golden_json("rae_sampling")
SIT_RUN = re.compile(r"(?P<form>[a-z-]+)\.(?P<method>euler|heun)\.(?P<last>[a-z]+)\.(?P<norm>\d\.\d)\.(?P<size>.+)")
RUNS = [name for name in SIT if name not in ("A", "b", "noise", "w")]
RAE_SHIFT = (768 * 16 * 16 / 4096) ** 0.5  # square root of the latent's size over 4096
IMAGES = torch.tensor(RAE["images"]).flatten(2)  # (3, 2, 16)


def states_of(velocity, noise, config, increments=None):
    """State after each step, (steps, B, N, C)."""
    states = []
    batch = batch_of(*noise.shape)
    sample(
        Field(lambda x, t, dropped: velocity(x, t)),
        batch,
        (noise,),
        config,
        increments=None if increments is None else lambda step: (increments[step],),
        progress=lambda done, state: states.append(state[0]),
    )
    return torch.stack(states)


@pytest.mark.parametrize("name", RUNS)
def test_every_sde_of_the_sit_code(name):
    """A linear velocity and given increments, in float64: the trajectories agree to rounding."""
    run = SIT_RUN.fullmatch(name)
    steps, settings = len(SIT[name]), {}
    if run["form"] == "sbdm":
        settings["start"] = 0.95  # where that code was told to begin, and to end without a last step (0.05)
    if run["last"] == "none":
        steps, settings["end"] = steps - 1, 0.05  # that code repeats the last state, for its number of points
    else:
        settings["last_step_size"] = float(run["size"])
    config = SamplerConfig(
        {"euler": "sde", "heun": "sde_heun"}[run["method"]],
        steps,
        diffusion_form=run["form"],
        diffusion_norm=float(run["norm"]),
        last_step=run["last"],
        **settings,
    )
    states = states_of(lambda x, t: x @ SIT["A"] + (0.5 + t) * SIT["b"], SIT["noise"], config, SIT["w"])
    assert worst(states, SIT[name][:steps]) < 1e-12 * SIT[name].abs().max()


def test_the_runs_cover_every_setting():
    inputs = [SIT_RUN.fullmatch(name) for name in RUNS]
    assert {run["form"] for run in inputs} == {
        *("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")
    }
    assert {(run["method"], run["last"]) for run in inputs} == {
        (method, last) for method in ("euler", "heun") for last in ("mean", "tweedie", "euler", "none")
    }


def rae_velocity(x, t):
    return torch.sin(3 * x) * (0.5 + t)


def test_the_grid_of_rae():
    """50 points, evenly spaced down to 0.001, then shifted: 49 steps that end at 0.0069."""
    timesteps = torch.tensor(SamplerConfig(steps=49, shift=RAE_SHIFT, end=0.001).timesteps())
    assert worst(timesteps, torch.tensor(RAE["grid_50_points"])) < 5e-7  # worst seen 8.0e-8
    assert timesteps[-1] == pytest.approx(0.006887, abs=1e-6)


def test_the_ode_of_rae():
    states = states_of(rae_velocity, IMAGES, SamplerConfig(steps=9, shift=RAE_SHIFT, end=0.001))
    assert worst(states[-1], torch.tensor(RAE["euler_10_points"]).flatten(2)) < 2e-6  # worst seen 2.4e-7


def test_the_sde_of_rae():
    """Its random steps end at 0.04 before the shift. Its last step then takes that time for the shifted one (0.22);
    here it is repeated by hand."""
    draw = torch.Generator().manual_seed(602)
    increments = [torch.randn(3, 2, 4, 4, generator=draw).flatten(2) for _ in range(9)]
    config = SamplerConfig("sde", 9, shift=RAE_SHIFT, end=0.04, last_step="none")
    assert config.timesteps()[-1] == pytest.approx(shift_time(0.04, RAE_SHIFT))
    x = states_of(rae_velocity, IMAGES, config, increments)[-1]
    v = rae_velocity(x, 0.04)
    final = x - 0.04 * (v + (x + 0.96 * v))
    assert worst(final, torch.tensor(RAE["sde_10_points"]).flatten(2)) < 1e-5  # worst seen 1.2e-6
