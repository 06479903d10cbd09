"""SIGTERM and Ctrl-C at every kind of moment: the step that runs is published, or the last checkpoint is intact; the
exit code is 75, run.json says stopped, the printed command goes on, and the bits are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import build
from core.training import trainer as trainer_module
from core.training.checkpoint import CheckpointStore
from core.training.trainer import Trainer
from modalities.data.loader import StepDataset
from modalities.monitoring.preview import Preview
from tests.tools.tiny import STEPS, published, result, train
from tools.cli import main

SIZES = ("training.save_every=100", "training.preview.every=2", "training.preview.samples=1")


def ends(run: Path) -> tuple[str, int, str]:
    """What run.json says: state, step, reason."""
    content = json.loads((run / "run.json").read_text())
    return content["state"], content["end"]["step"], content["end"]["reason"]


def ask_in(monkeypatch, owner: object, name: str, when: Callable[..., bool], times: int = 1) -> None:
    """Send SIGTERM to this process in a call for which `when` holds, before it does its work."""
    plain = getattr(owner, name)

    def called(*arguments, **named):
        if when(*arguments, **named):
            for number in range(times):
                time.sleep(0.4 * bool(number))  # as Slurm and torchrun do
                os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments, **named)

    monkeypatch.setattr(owner, name, called)


def always(*_: object, **__: object) -> bool:
    return True


PLACES: dict[str, tuple[object, str, Callable[..., bool], list[int]]] = {
    "a step": (Trainer, "train_step", lambda trainer, step, _: step == 2, [3]),
    "a checkpoint": (CheckpointStore, "_begin", lambda store, final, aside, parts, step: step == 3, [3]),
    "a preview": (Preview, "__call__", lambda preview, step, *_: step == 2, [2]),
    "waiting": (StepDataset, "__getitem__", lambda data, item: item == 3, [3]),
}


def told(message: str) -> list[str]:
    (line,) = [line for line in message.splitlines() if ": selfflow train" in line]
    return shlex.split(line.rpartition(": ")[2])[1:]


@pytest.mark.parametrize(("place", "times"), [("a step", 2), ("a checkpoint", 1), ("a preview", 1), ("waiting", 1)])
def test_a_request_at_any_moment_of_training(place, times, tiny_run, tmp_path, monkeypatch, capsys):
    owner, name, when, steps = PLACES[place]
    sizes = [*SIZES, "training.keep_every=3"] if place == "a checkpoint" else SIZES
    with monkeypatch.context() as patch:
        ask_in(patch, owner, name, when, times)
        assert train(tmp_path, *sizes) == 75
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert f"stopped by SIGTERM after {steps[-1]} of {STEPS} steps" in shown.out
    assert published(tmp_path) == steps
    assert ends(tmp_path) == ("stopped", steps[-1], "SIGTERM")
    assert main(told(shown.err)) == 0
    assert ends(tmp_path) == ("finished", STEPS, "")
    assert result(tmp_path) == result(tiny_run)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        *(f"step-{step:08d}" for step in (2, 4, 6))
    ]


def test_a_request_before_the_first_step_and_during_a_resume(tiny_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        ask_in(patch, build, "build_hooks", always)
        assert train(tmp_path / "a") == 75
    message = capsys.readouterr().err
    assert "stopped by SIGTERM before the first step" in message
    assert not (tmp_path / "a").exists()
    assert told(message)[-1] == f"run={tmp_path / 'a'}"

    assert train(tmp_path / "b", "training.steps=2") == 0
    with monkeypatch.context() as patch:
        ask_in(patch, trainer_module, "restore", always)
        assert train(tmp_path / "b") == 75
    assert published(tmp_path / "b") == [2]
    assert ends(tmp_path / "b")[0] == "stopped"
    assert main(told(capsys.readouterr().err)) == 0
    assert result(tmp_path / "b") == result(tiny_run)


def test_a_run_that_fails_says_so_in_run_json_and_goes_on(tmp_path, monkeypatch, capsys):
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step == 1:
            raise ValueError("a bug")
        return plain(self, step, microbatches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(ValueError, match="a bug"):
            train(tmp_path, "training.steps=2", "training.save_every=1")
    state, step, reason = ends(tmp_path)
    assert (state, step) == ("failed", 1)
    assert reason.startswith("ValueError: a bug (test_stop.py:")
    assert main(told(capsys.readouterr().err)) == 0
    assert ends(tmp_path) == ("finished", 2, "")
    lacking = {
        name: value for name, value in json.loads((tmp_path / "run.json").read_text()).items() if name != "state"
    }
    (tmp_path / "run.json").write_text(json.dumps(lacking))  # killed before it could tell
    assert train(tmp_path, "training.steps=2") == 0
    assert ends(tmp_path) == ("finished", 2, "")
    train(tmp_path, "training.steps=3", "streams.image.batch=3")  # refused: nothing is written
    assert ends(tmp_path) == ("finished", 2, "")
