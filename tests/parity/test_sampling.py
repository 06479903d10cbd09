"""The sampler against recorded runs of the published samplers, with their noise and their increments."""

import pytest
import torch

from core.sampling.sampler import LAST_SDE_STEP, SamplerConfig, sample, time_grid
from tests.parity.common import golden, image_batch, tiny_trunk, worst

SDE, ODE = golden("sde"), golden("ode_and_repa")
CONDITION = slice(2, 4)  # guided runs hold [null half, condition half]; the second is the sample


def run_sde(case, config, rows=slice(None), first_increment=None):
    """Final tokens, and the state before every evaluation but the first."""
    x = SDE[f"{case}.x_init"][rows].float()
    increments = [w[rows] for w in SDE[f"{case}.w"]]
    if first_increment is not None:
        increments[0] = first_increment
    states = []
    (final,) = sample(
        tiny_trunk(),
        image_batch(x, SDE[f"{case}.labels"][rows]),
        (x,),
        config,
        increments=lambda step: (increments[step],),
        progress=lambda done, state: states.append(state[0]),
    )
    return final, torch.stack(states[:-1])


@pytest.mark.parametrize("steps", [8, 250])
def test_sde_times(steps):
    """Ours count from noise; the recorded ones from data, on a float32 grid with one step size."""
    timesteps = torch.tensor(time_grid(steps, last_step=LAST_SDE_STEP), dtype=torch.float64)
    recorded = SDE[f"grid{steps}_sit_time"]
    assert worst(1 - timesteps[:-1], recorded) < 1e-7
    assert worst((timesteps[:-2] - timesteps[1:-1]).mean(), SDE[f"grid{steps}_dt"]) < 1e-8
    assert timesteps[-1] == 0


@pytest.mark.parametrize(
    ("case", "config", "rows"),
    [
        ("nocfg", SamplerConfig("sde", 8), slice(None)),
        ("cfg2.5", SamplerConfig("sde", 8, cfg_scale=2.5), CONDITION),
        ("cfg2.5_interval0_0.7", SamplerConfig("sde", 8, cfg_scale=2.5, cfg_interval=[0.0, 0.7]), CONDITION),
    ],
)
def test_sde_with_given_increments(case, config, rows):
    final, states = run_sde(case, config, rows)
    assert worst(states, SDE[f"{case}.nfe_x"][1:, rows]) < 2e-5  # worst seen 1.9e-6, states up to 5.1
    assert worst(final, SDE[f"{case}.final"][rows]) < 2e-5  # worst seen 1.9e-6


def test_sde_from_bfloat16_noise():
    """The published script starts in bfloat16 and so rounds its first increment; with that increment we agree."""
    w, dt = SDE["nocfg_bf16init.w"][0], SDE["grid8_dt"][0]
    rounded = (torch.tensor(2.0).sqrt().bfloat16() * (w.bfloat16() * dt.sqrt())).float()
    first = rounded / (2 * dt).sqrt()
    final, _ = run_sde("nocfg_bf16init", SamplerConfig("sde", 8), first_increment=first)
    assert worst(final, SDE["nocfg_bf16init.final"]) < 2e-5  # worst seen 6.0e-7
    plain, _ = run_sde("nocfg_bf16init", SamplerConfig("sde", 8))
    assert worst(plain, SDE["nocfg_bf16init.final"]) < 1e-2  # 4.2e-3: what that rounding costs


def test_sde_of_250_steps():
    x = SDE["nocfg_250.x_init"]
    draw = torch.Generator().manual_seed(1234)  # the same numbers as the default generator of that seed
    increments = [torch.randn(x.shape, generator=draw) for _ in range(249)]
    batch = image_batch(x, SDE["nocfg_250.labels"])
    config = SamplerConfig("sde", 250)
    (final,) = sample(tiny_trunk(), batch, (x,), config, increments=lambda step: (increments[step],))
    assert worst(final, SDE["nocfg_250.final"]) < 2e-5  # worst seen 7.2e-7 here; other machines drift further


@pytest.mark.parametrize(
    ("solver", "recorded"), [("euler", "euler"), ("heun", "heun2"), ("midpoint", "midpoint"), ("rk4", "rk4")]
)
def test_ode_trajectories(solver, recorded):
    """9 grid points of the SiT code are 8 steps."""
    assert worst(trajectory(SamplerConfig(solver, 8)), ODE[f"sit_ode_{recorded}_9pts.traj"]) < 2e-5  # seen 7.2e-7


def trajectory(config, dtype=torch.float32):
    """(9, B, 16, 16): the noise and the state after each of 8 steps."""
    x = ODE["tokens_noise"].to(dtype)
    states = [x]
    batch = image_batch(x, ODE["labels"])
    sample(tiny_trunk(), batch, (x,), config, progress=lambda done, state: states.append(state[0]))
    return torch.stack(states)


def test_dopri5_as_in_the_sit_code():
    """At its default tolerances. The first step is so small that its error estimate is rounding, which then decides
    the second step: noise of 3e-7 in the velocity moves the run by up to 6e-4, as much as the tolerance allows."""
    pytest.importorskip("torchdiffeq")
    states = trajectory(SamplerConfig("dopri5", 8, batch_invariant=False, land_on_end=False))
    recorded = ODE["sit_ode_dopri5_9pts.traj"]
    assert worst(states[:2], recorded[:2]) < 1e-4  # worst seen 6.2e-6
    assert worst(states, recorded) < 2e-3  # worst seen 2.3e-4


@pytest.mark.parametrize(("land", "error"), [(True, 3e-4), (False, 4e-3)])
def test_error_of_dopri5_at_its_default_tolerances(land, error):
    """Seen 6.8e-5 and, as in the SiT code, 1.2e-3."""
    pytest.importorskip("torchdiffeq")
    states = trajectory(SamplerConfig("dopri5", 8, batch_invariant=False, land_on_end=land))
    assert worst(states[-1], ODE["sit_ode_dopri5_tight.final"]) < error


def test_dopri5_with_tight_tolerances():
    pytest.importorskip("torchdiffeq")
    config = SamplerConfig("dopri5", 8, atol=1e-8, rtol=1e-8)
    final = trajectory(config, torch.float64)[-1]
    assert worst(final, ODE["sit_ode_dopri5_tight.final"]) < 2e-5


def test_heun_converges_to_the_tight_solution():
    x = ODE["tokens_noise"]
    config = SamplerConfig("heun", 100)
    (final,) = sample(tiny_trunk(), image_batch(x, ODE["labels"]), (x,), config)
    assert (
        worst(final, ODE["sit_ode_dopri5_tight.final"]) < 1e-4
    )  # worst seen 2.8e-5, a quarter of that with twice the steps


def test_the_sde_of_the_sit_code():
    case = ODE["sit_sde_euler_8.final"]
    final, _ = run_sde("nocfg", SamplerConfig("sde", 8))
    assert worst(final, case) < 2e-5  # worst seen 1.9e-6


@pytest.mark.parametrize(
    ("recorded", "config"),
    [
        ("repa_euler_8", SamplerConfig("euler", 8)),
        ("repa_heun_8", SamplerConfig("heun", 8, correct_last=False)),
        ("repa_euler_8_cfg2.5_0_0.7", SamplerConfig("euler", 8, cfg_scale=2.5, cfg_interval=[0.0, 0.7])),
        ("repa_sde_8", SamplerConfig("sde", 8)),
        ("repa_sde_8_cfg2.5_0_0.7", SamplerConfig("sde", 8, cfg_scale=2.5, cfg_interval=[0.0, 0.7])),
    ],
)
def test_float64_state(recorded, config):
    """REPA keeps the state in float64, as ours is when the noise is."""
    x = ODE["tokens_noise"].double()
    batch = image_batch(x, ODE["labels"])
    (final,) = sample(tiny_trunk(), batch, (x,), config, increments=lambda step: (ODE["repa_sde_8.w_float64"][step],))
    assert final.dtype == torch.float64
    assert worst(final, ODE[recorded]) < 2e-5  # worst seen 1.5e-6


def test_the_correction_of_the_last_step_matters():
    x = ODE["tokens_noise"].double()
    (final,) = sample(tiny_trunk(), image_batch(x, ODE["labels"]), (x,), SamplerConfig("heun", 8))
    assert worst(final, ODE["repa_heun_8"]) > 1e-3
