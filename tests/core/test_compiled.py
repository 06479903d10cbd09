"""When a run is compiled: chosen before its first step, stored, and left where the compilation fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from configs.build import build_trainer
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from core.training import compiled
from core.training.checkpoint import CheckpointStore
from core.training.compiled import choose_compiled, missing_compiler
from core.training.config import stored_instance, to_plain, value_at, with_value
from core.training.trainer import Trainer
from tests.reliability.test_resume import stop_after
from tests.tools.tiny import CONFIG, result, train

COMPILE = "training.compile"


@pytest.mark.parametrize(
    ("wanted", "steps", "device", "processes", "before", "missing", "expected", "why"),
    [
        ("off", 10**6, "cpu", 1, None, "", False, ""),
        ("on", 1, "cpu", 1, None, "", True, ""),
        ("on", 1, "cuda", 8, False, "", True, ""),
        ("auto", 1979, "cpu", 1, None, "", False, "1,979 steps do not repay the compilation; 1,980 would"),
        ("auto", 1980, "cpu", 1, None, "", True, "1,980 steps repay the compilation"),
        ("auto", 5999, "cuda", 1, None, "", False, "5,999 steps do not repay the compilation; 6,000 would"),
        ("auto", 6000, "cuda", 1, None, "", True, "6,000 steps repay the compilation"),
        ("auto", 1980, "cpu", 1, None, "there is no g++", False, "there is no g++"),
        ("auto", 40, "cpu", 1, None, "there is no g++", False, "40 steps do not repay the compilation; 1,980 would"),
        ("auto", 10**6, "cuda", 2, None, "", False, "on several devices with training.compile=on alone"),
        # A run goes on as it began, wherever and however long.
        ("auto", 1, "cpu", 1, True, "", True, ""),
        ("auto", 1, "cpu", 2, True, "", True, ""),
        ("auto", 10**6, "cpu", 1, False, "", False, ""),
        ("auto", 10**6, "cpu", 1, False, "there is no g++", False, ""),
        (
            "auto", 1, "cpu", 1, True, "there is no g++", False,
            "there is no g++; the steps before were compiled, and those from here on round differently",
        ),
    ],
)  # fmt: skip
def test_the_choice(wanted, steps, device, processes, before, missing, expected, why):
    """For three shapes; a shape takes 660 steps on a CPU and 2,000 on a GPU."""
    choice = choose_compiled(wanted, steps, 3, device, processes, before, missing)
    assert (choice.compiled, choice.why) == (expected, why)


def test_on_without_a_compiler_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train(tmp_path / "run", f"{COMPILE}=on") == 2
    assert "there is no C++ compiler (no-such-compiler); allowed without: auto, off" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_compiler_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert missing_compiler("cpu").startswith("there is no C++ compiler (")
    gpu = missing_compiler("cuda")
    assert gpu in ("there is no triton", "there is no C compiler (gcc or clang)")
    executable(tmp_path / "cc+")
    monkeypatch.setenv("CXX", "cc+ -O2")
    assert missing_compiler("cpu") == f"Python's header files are not there ({tmp_path / 'Python.h'})"
    (tmp_path / "Python.h").touch()
    assert missing_compiler("cpu") == ""


def test_what_used_to_be_true_and_false_is_read(tmp_path):
    """Also where it was stored, as a bool. Broken: 'expected str, got True'."""
    for text, expected in {"true": "on", "False": "off", "on": "on"}.items():
        assert load_config(CONFIG, [f"{COMPILE}={text}"]).training.compile == expected
    (tmp_path / "base.yaml").write_text(f"base: {CONFIG}\ntraining: {{compile: true}}\n")
    config = load_config(tmp_path / "base.yaml", [])
    stored = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    assert value_at(stored, COMPILE) == "on"
    assert stored_instance(Config, with_value(stored, COMPILE, True)) == config
    with pytest.raises(ConfigError, match=r"training\.compile: 'yes' is not one of auto, on, off"):
        load_config(CONFIG, [f"{COMPILE}=yes"])


def test_a_run_of_a_version_with_true_and_false_goes_on(tmp_path, monkeypatch, capsys):
    """As eager as it was, though the default is auto now; and nothing is noted."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(tmp_path, f"{COMPILE}=off") == 75
    stored = tmp_path / "config.yaml"
    older = stored.read_text().replace("  compile: 'off'\n", "  compile: false\n")
    assert older != stored.read_text()
    stored.write_text(older)
    monkeypatch.setitem(compiled.WORTH, "cpu", 1)
    assert train(tmp_path, f"{COMPILE}=on") == 2
    assert "training.compile: 'off' when the run was started, 'on' now" in capsys.readouterr().err
    assert train(tmp_path) == 0
    assert "compile" not in capsys.readouterr().err
    assert not {"changes", "compile"} & told(tmp_path).keys()


def test_a_run_that_is_too_short_says_so(tmp_path, capsys):
    why = "6 steps do not repay the compilation; 1,980 would"
    trainer = build(tmp_path, "auto")
    assert f"compile: off, {why}" in capsys.readouterr().err
    assert told(tmp_path)["compile"] == [{"step": 0, "compiled": False, "why": why}]
    assert not trainer.compiled
    assert trainer.extra["compiled"] is False


def test_a_step_whose_compilation_fails_is_done_again_as_it_is_written(tmp_path, monkeypatch, capsys):
    def broken(graph, inputs):
        raise RuntimeError("g++ has crashed")

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: plain(self, backend=broken, **settings))
    monkeypatch.setitem(compiled.WORTH, "cpu", 1)
    trainers = {wanted: build(tmp_path / wanted, wanted) for wanted in ("off", "auto")}
    step, microbatches = next(iter(trainers["off"].loader.steps(0, 1)))
    expected = trainers["off"].attempt(step, microbatches)
    assert trainers["auto"].attempt(step, microbatches) == expected
    for one, other in zip(trainers["auto"].student.parameters(), trainers["off"].student.parameters(), strict=True):
        assert torch.equal(one, other)
    error = capsys.readouterr().err
    assert "compile: on, 6 steps repay the compilation" in error
    assert "compile: step 1 could not be compiled: backend='broken' raised" in error
    assert trainers["auto"].extra["compiled"] is False
    assert [entry["compiled"] for entry in told(tmp_path / "auto")["compile"]] == [False]
    trainers["off"].config.compile = "on"
    with pytest.raises(ConfigError, match=r"training\.compile: on, and step 1 could not be compiled"):
        trainers["off"].leave_compiler(step, RuntimeError("g++ has crashed"))


@pytest.mark.slow
def test_a_compiled_run_that_is_interrupted_ends_with_the_same_bits(tmp_path, monkeypatch):
    if missing := missing_compiler("cpu"):
        pytest.skip(missing)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    alone = ("streams.video=null", "streams.audio=null")
    with monkeypatch.context() as patch:
        patch.setitem(compiled.WORTH, "cpu", 1)
        assert train(tmp_path / "whole", *alone) == 0
        stop_after(patch, 3)
        assert train(tmp_path / "cut", *alone) == 75
    assert any((tmp_path / "kernels").iterdir())
    assert train(tmp_path / "cut", *alone) == 0  # too short by itself, and compiled since it began so
    assert train(tmp_path / "eager", *alone) == 0
    whole, eager = result(tmp_path / "whole"), result(tmp_path / "eager")
    assert result(tmp_path / "cut") == whole
    assert whole["metrics"] != eager["metrics"]  # it was compiled
    first, other = (json.loads(found["metrics"].splitlines()[-1]) for found in (whole, eager))
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_compiler_that_cannot_compile_is_left(tiny_run, tmp_path, monkeypatch, capsys):
    executable(tmp_path / "g++", "echo 'g++ (broken) 13.0.0'; [ \"$1\" = --version ]")
    torch.compiler.reset()  # what other tests have compiled in this process
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setitem(compiled.WORTH, "cpu", 1)
    assert train(tmp_path / "run") == 0
    assert "could not be compiled: " in capsys.readouterr().err
    assert result(tmp_path / "run") == result(tiny_run)


def build(run: Path, wanted: str) -> Trainer:
    return build_trainer(load_config(CONFIG, [f"run={run}", f"{COMPILE}={wanted}"]), CONFIG.parent)


def executable(path: Path, body: str = "") -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def told(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def extra(run: Path) -> dict:
    store = CheckpointStore(run / "checkpoints")
    return store.extra(store.latest())
