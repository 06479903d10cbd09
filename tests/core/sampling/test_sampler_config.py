"""Settings of the sampler: a configuration for each solver, what goes together, and what is refused."""

import pickle
from dataclasses import dataclass, field, fields

import pytest

from core.errors import ConfigError
from core.kinds import kinds
from core.sampling.config import HeunConfig, SDEHeunConfig
from core.sampling.sampler import SOLVERS, SamplerConfig
from core.training.config import load, validated


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"solver": "dopri5", "rtol": 0.0}, "rtol: 0.0 must be above 0"),
        ({"start": 0.2, "end": 0.2}, "start, end: 0.2, 0.2 must lie in [0, 1], the end below the start"),
        ({"start": 1.1}, "start, end: 1.1"),
        ({"solver": "sde", "diffusion_form": "SBDM"}, "diffusion_form: 'SBDM' is not one of constant, sbdm, sigma"),
        ({"solver": "sde", "diffusion_form": "sbdm"}, "start: 1.0 must be below 1 (0.999, say)"),
        ({"solver": "sde", "diffusion_norm": -1.0}, "diffusion_norm: -1.0 must not be negative"),
        ({"solver": "sde", "last_step": "meen"}, "last_step: 'meen' is not one of mean, tweedie, euler, none. Did you"),
        ({"solver": "sde", "last_step_size": 0.0}, "last_step_size: 0.0 must lie between 0 and 1"),
        ({"solver": "sde", "last_step_size": 0.6, "start": 0.5}, "last_step_size: 0.6 must be below the start"),
        ({"solver": "sde", "last_step": "none", "last_step_size": 0.1}, "last_step_size: 0.1 is not read with"),
        ({"solver": "sde", "end": 0.04}, "end: 0.04 must be 0, where last_step mean ends; or set last_step to none"),
        ({"solver": "sde_heun", "last_step": "none"}, "end: 0.0 must be above 0"),
        ({"solver": "sde", "steps": 1}, "steps: 1 must be at least 2"),
        ({"steps": 10**9}, "steps: 1000000000 must be at most 100,000"),
        ({"cfg_scale": -2.0}, "cfg_scale: -2.0 must not be negative"),
        ({"cfg_scale": 1e30}, "cfg_scale: 1e+30 must be at most 1000"),
        ({"solver": "sde", "diffusion_norm": 1e30}, "diffusion_norm: 1e+30 must be at most 1000"),
        ({"shift": 1e30}, "shift: 1e+30 puts several of the 50 steps at one timestep"),
        ({"start": 1e-320, "steps": 50_000}, "shift: 1.0 puts several"),
    ],
)
def test_wrong_settings(settings, problem):
    found = SamplerConfig(**settings).problems()
    assert len(found) == 1
    assert found[0].startswith(problem)


@dataclass
class Stream:
    sampling: SamplerConfig = field(default_factory=SamplerConfig, metadata=kinds(SOLVERS, "solver", keeps=True))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"diffusion_form": "constant"},
            "diffusion_form: no setting of solver 'euler'; it belongs to sde and",
        ),
        ({"solver": "rk4", "diffusion_norm": 2.0}, "diffusion_norm: no setting of solver 'rk4'"),
        ({"solver": "heun", "last_step": "none"}, "last_step: no setting of solver 'heun'"),
        ({"solver": "dopri5", "last_step_size": 0.1}, "last_step_size: no setting of solver 'dopri5'"),
        ({"solver": "sde", "atol": 1e-3}, "atol: no setting of solver 'sde'; it belongs to dopri5"),
        ({"rtol": 1e-5}, "rtol: no setting of solver 'euler'; it belongs to dopri5"),
        ({"land_on_end": False}, "land_on_end: no setting of solver 'euler'"),
        (
            {"solver": "midpoint", "correct_last": False},
            "correct_last: no setting of solver 'midpoint'",
        ),
        ({"solver": "heunn"}, "solver: 'heunn' is not one of"),
        ({"stepz": 3}, "stepz: no setting of solver 'euler'. Did you mean: 'steps'?"),
    ],
)
def test_settings_of_other_solvers_are_refused(settings, problem):
    with pytest.raises(ConfigError) as caught:
        SamplerConfig("midpoint" if "solver" in settings else "euler").changed(**settings)
    (line,) = caught.value.problems
    assert line.startswith(problem)
    with pytest.raises(ConfigError) as caught:
        validated(Stream, {"sampling": settings})
    (line,) = caught.value.problems
    if "solver: " not in problem:
        assert line.startswith(
            f"sampling.{next(reversed(settings))}: unknown key of solver {settings.get('solver', 'euler')!r}"
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("solver", "name"),
    [(solver, e.name) for solver, row in SOLVERS.items() for e in fields(row) if isinstance(e.default, float)],
)
def test_settings_are_finite(solver, name, value):
    assert SamplerConfig(solver, **{name: value}).problems() == [f"{name}: {value} is not a finite number"]


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "sde", "steps": 1, "last_step": "none"},
        {"solver": "sde_heun", "diffusion_form": "sbdm", "start": 0.999, "last_step": "none", "end": 0.001},
        {"solver": "dopri5", "atol": 1e-5, "rtol": 1e-5, "land_on_end": False},
        {"solver": "heun", "correct_last": False, "end": 0.001},
    ],
)
def test_settings_that_go_together(settings):
    assert SamplerConfig(**settings).problems() == []


def test_each_solver_is_called_as_in_the_table():
    for solver, row in SOLVERS.items():
        assert type(SamplerConfig(solver)) is row
        assert SamplerConfig(solver) == row()
        assert pickle.loads(pickle.dumps(SamplerConfig(solver, 3))) == row(steps=3)


def test_another_solver_on_the_command_line_keeps_what_both_have(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "sampling: {solver: sde, steps: 9, shift: 2, diffusion_form: constant, last_step: none, end: 0.1}\n"
    )
    found = load(Stream, path, ["sampling.solver=heun", "sampling.correct_last=false"]).sampling
    assert found == HeunConfig(steps=9, shift=2.0, end=0.1, correct_last=False)
    found = load(Stream, path, ["sampling.solver=sde_heun"]).sampling
    assert found == SDEHeunConfig(steps=9, shift=2.0, diffusion_form="constant", last_step="none", end=0.1)


def test_another_solver_drops_what_it_does_not_have():
    config = SamplerConfig("sde", 9, shift=2.0, diffusion_form="constant", last_step="none")
    assert config.changed(solver="euler") == SamplerConfig("euler", 9, shift=2.0)
    heun = SamplerConfig("sde_heun", 9, shift=2.0, diffusion_form="constant", last_step="none", end=0.1)
    assert config.changed(solver="sde_heun", end=0.1) == heun
