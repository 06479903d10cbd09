"""The ODE solvers against a linear ODE with a known solution, and against torchdiffeq itself."""

import math
import sys
from functools import partial

import pytest
import torch

from core.errors import ConfigError
from core.keys import generator
from core.sampling.levels import shared_schedule
from core.sampling.ode import dopri5, euler_step, heun_step, midpoint_step, on_grid, rk4_step
from core.sampling.sampler import SamplerConfig, sample
from core.types import Segment, TokenBatch
from tests.core.fields import Field, batch_of, gaussian

MEAN, DEVIATION = 0.7, 0.5
STEPS = {"euler": euler_step, "midpoint": midpoint_step, "heun2": heun_step, "rk4": rk4_step}


def no_draws(step):
    raise AssertionError("an ODE needs no random numbers")


def linear_error(steps, **settings):
    """Of dx/dt = -(1 + t) x from 1 to 0, where x(0) = x(1) exp(3/2)."""
    noise = torch.linspace(-3, 3, 32, dtype=torch.float64).reshape(1, 16, 2)
    field = Field(lambda x, t, dropped: -(1 + t) * x)
    (final,) = sample(field, batch_of(1, 16, 2), (noise,), SamplerConfig(steps=steps, **settings), increments=no_draws)
    return float((final - noise * math.exp(1.5)).abs().max())


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({"solver": "euler"}, 1),
        ({"solver": "midpoint"}, 2),
        ({"solver": "heun"}, 2),
        ({"solver": "heun", "correct_last": False}, 2),  # one step of order 1 has a local error of order 2
        ({"solver": "rk4"}, 4),
    ],
)
def test_order(settings, order):
    coarse, fine = (linear_error(steps, **settings) for steps in (80, 160))
    assert coarse / fine == pytest.approx(2**order, rel=0.1)


def gaussian_error(steps, **settings):
    """Of the ODE's map from noise to data, which is exactly mean + deviation * noise."""
    noise = torch.linspace(-3, 3, 32, dtype=torch.float64).reshape(1, 16, 2)
    config, field = SamplerConfig(steps=steps, **settings), Field(gaussian(MEAN, DEVIATION))
    (final,) = sample(field, batch_of(1, 16, 2), (noise,), config, increments=no_draws)
    return float((final - (MEAN + DEVIATION * noise)).abs().max())


@pytest.mark.parametrize(
    ("solver", "error"),
    [("euler", 0.06), ("midpoint", 6e-6), ("heun", 5e-4), ("rk4", 7e-9)],  # of order 3 for midpoint on Gaussian data
)
def test_gaussian_data(solver, error):
    assert error / 2 < gaussian_error(40, solver=solver) < error


@pytest.mark.parametrize("land", [True, False])
def test_dopri5_keeps_to_its_tolerances(land):
    pytest.importorskip("torchdiffeq")
    tolerances = (1e-3, 1e-6, 1e-9)
    errors = [gaussian_error(4, solver="dopri5", atol=t, rtol=t, land_on_end=land) for t in tolerances]
    for error, tolerance in zip(errors, tolerances, strict=True):
        assert error < 100 * tolerance  # worst seen 50; the error is the largest one, and adds up over the steps


@pytest.mark.parametrize("name", [*STEPS, "dopri5"])
def test_trajectories_are_those_of_torchdiffeq(name):
    """Which SiT runs in its own time, from noise at 0 to data at 1, and over the grid of that time."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    field = gaussian(MEAN, DEVIATION)
    x = torch.randn(3, 5, 2, generator=generator(0), dtype=torch.float64)
    ours = on_grid(STEPS[name]) if name in STEPS else dopri5(1e-6, 1e-3, land=False)
    timesteps = [1 - i / 8 for i in range(9)]
    states = ours(
        lambda y, t, moving: (field(y[0], torch.tensor(t[0], dtype=torch.float64), None),),
        (x,),
        shared_schedule(timesteps),
        no_draws,
    )
    theirs = torchdiffeq.odeint(
        lambda t, y: -field(y, 1 - t, None), x, torch.linspace(0, 1, 9).double(), method=name, atol=1e-6, rtol=1e-3
    )
    torch.testing.assert_close(torch.stack([state[0] for state in states]), theirs[1:], atol=1e-10, rtol=0)


def test_landing_keeps_the_times_inside():
    pytest.importorskip("torchdiffeq")
    seen = {}
    for land in (True, False):
        trunk = Field(gaussian(MEAN, DEVIATION))
        noise = torch.randn(1, 4, 2, generator=generator(0), dtype=torch.float64)
        config = SamplerConfig("dopri5", 1, start=0.9, end=0.1, land_on_end=land)
        sample(trunk, batch_of(1, 4, 2), (noise,), config)
        seen[land] = [float(levels.values[0, 0]) for _, levels, _ in trunk.calls]
    assert max(seen[True]) == max(seen[False]) == pytest.approx(0.9)
    assert min(seen[True]) == pytest.approx(0.1)
    assert min(seen[False]) < 0.05


def test_guidance_goes_on_past_the_data():
    pytest.importorskip("torchdiffeq")
    trunk = Field(gaussian(MEAN, DEVIATION))
    noise = torch.randn(1, 4, 2, generator=generator(0), dtype=torch.float64)
    config = SamplerConfig("dopri5", 1, cfg_scale=2.0, land_on_end=False)
    sample(trunk, batch_of(1, 4, 2), (noise,), config)
    below = [len(noisy[0]) for noisy, levels, _ in trunk.calls if levels.values[0, 0] < 0]
    assert below
    assert set(below) == {2}


def test_guidance_interval_under_dopri5():
    """Guided inside, not outside: the solution of the two linear ODEs in turn."""
    pytest.importorskip("torchdiffeq")
    trunk = Field(lambda x, t, dropped: torch.where(dropped, 1.0, 3.0) * torch.ones_like(x))
    config = SamplerConfig("dopri5", 1, cfg_scale=2.0, cfg_interval=[0.3, 0.7], atol=1e-9, rtol=1e-9)
    (final,) = sample(trunk, batch_of(1, 2, 2), (torch.zeros(1, 2, 2, dtype=torch.float64),), config)
    torch.testing.assert_close(final, torch.full_like(final, -(0.6 * 3 + 0.4 * 5)), atol=1e-6, rtol=0)
    doubled = [float(levels.values[0, 0]) for noisy, levels, _ in trunk.calls if len(noisy[0]) == 2]
    single = [float(levels.values[0, 0]) for noisy, levels, _ in trunk.calls if len(noisy[0]) == 1]
    assert all(0.3 <= t <= 0.7 for t in doubled)
    assert not any(0.3 <= t <= 0.7 for t in single)


def test_dopri5_sees_free_tokens_only():
    """Given tokens, padding and other samples do not change the steps of a sample; without exact, samples do."""
    pytest.importorskip("torchdiffeq")
    field = Field(lambda x, t, dropped: 3 * torch.sin(5 * x) + t)
    noise = torch.randn(2, 3, 2, generator=generator(4), dtype=torch.float64)
    alone = sample(field, batch_of(2, 3, 2), (noise,), SamplerConfig("dopri5", 1))[0]
    plain = batch_of(2, 3, 2).segments[0]
    wider = torch.cat([noise, torch.zeros(2, 4, 2, dtype=torch.float64)], dim=1)  # fields act on each token alone
    mask = torch.tensor([False] * 3 + [True] * 4).expand(2, -1)
    for name, value in (("conditioning_mask", mask), ("valid", ~mask)):
        x0 = torch.full((2, 7, 2), 0.25, dtype=torch.float64)
        segment = Segment("image", x0, torch.zeros(1, 7, 3, dtype=torch.long), **{name: value})
        batch = TokenBatch((segment,), batch_of(2, 3, 2).context, ("0", "1"))
        (final,) = sample(field, batch, (wider,), SamplerConfig("dopri5", 1))
        assert torch.equal(final[:, :3], alone)
        if name == "conditioning_mask":
            assert torch.equal(final[:, 3:], x0[:, 3:])
    one = TokenBatch((Segment("image", plain.x0[:1], plain.ids),), batch_of(1, 3, 2).context, ("0",))
    first = sample(field, one, (noise[:1],), SamplerConfig("dopri5", 1))[0]
    assert torch.equal(first, alone[:1])
    together = sample(field, batch_of(2, 3, 2), (noise,), SamplerConfig("dopri5", 1, batch_invariant=False))[0]
    assert not torch.equal(together, alone)
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0)


def test_dopri5_with_nothing_to_integrate():
    pytest.importorskip("torchdiffeq")
    conditioning_mask = torch.ones(2, 3, dtype=torch.bool)
    batch, seen = batch_of(2, 3, 2, conditioning_mask=conditioning_mask), []
    progress = lambda step, state: seen.append(step)  # noqa: E731
    (final,) = sample(
        Field(gaussian(0, 1)), batch, (torch.ones(2, 3, 2),), SamplerConfig("dopri5", 3), 0, None, progress
    )
    assert torch.equal(final, torch.zeros(2, 3, 2))
    assert seen == [1, 2, 3]


def test_the_grid_does_not_move_the_steps_of_dopri5():
    pytest.importorskip("torchdiffeq")
    noise, finals = torch.randn(2, 3, 2, generator=generator(4)), []
    for steps in (1, 7):
        states: dict[int, torch.Tensor] = {}
        run = partial(sample, Field(gaussian(MEAN, DEVIATION)), batch_of(2, 3, 2), (noise,))
        run(SamplerConfig("dopri5", steps), progress=lambda step, x, states=states: states.update({step: x[0]}))
        assert list(states) == list(range(1, steps + 1))
        finals += [states[steps], run(SamplerConfig("dopri5", steps))[0]]
    assert all(torch.equal(final, finals[0]) for final in finals)


def test_without_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    noise = (torch.zeros(1, 2, 2),)
    with pytest.raises(ConfigError, match=r"package torchdiffeq, .*: pip install -e '\.\[ode\]'\. All other"):
        sample(Field(gaussian(0, 1)), batch_of(1, 2, 2), noise, SamplerConfig("dopri5", 1))
    sample(Field(gaussian(0, 1)), batch_of(1, 2, 2), noise, SamplerConfig("rk4", 1))


def test_dopri5_that_cannot_go_on(monkeypatch):
    pytest.importorskip("torchdiffeq")
    noise, config = (torch.ones(1, 2, 2),), SamplerConfig("dopri5", 1, atol=1e-14, rtol=1e-14)
    nowhere = Field(lambda x, t, dropped: x * torch.nan)
    with pytest.raises(ConfigError, match="atol 1e-14"):
        sample(nowhere, batch_of(1, 2, 2), noise, config)
    monkeypatch.setattr("core.sampling.ode.MAX_STEPS", 20)
    rough = Field(lambda x, t, dropped: torch.sin(1e9 * x))
    with pytest.raises(ConfigError, match="atol 1e-14"):
        sample(rough, batch_of(1, 2, 2), noise, config)
