"""selfflow replay: the numbers of the run itself, from any checkpoint, and where a NaN first appears."""

from __future__ import annotations

import math
import re
import shutil

import pytest
import torch

from core.training.trainer import Trainer
from tests.reliability.test_bad_step import spoil
from tests.reliability.test_resume import stop_after
from tests.tools.tiny import published, train
from tools.cli import main


def replayed(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["replay", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("step", [4, 6])  # right behind a checkpoint, and two steps later
def test_a_step_is_the_one_of_the_run_and_the_run_is_only_read(step, tiny_run, capsys):
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    shown = replayed(capsys, str(tiny_run), "--step", str(step))
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before
    assert "from the checkpoint of step 3" in shown
    assert ("2 steps between them were made again" in shown) == (step == 6)
    assert shown.count("(as recorded)") == len(re.findall(r"^  \w[\w/]*: ", shown, re.MULTILINE)) >= 6
    assert "NOT FINITE" not in shown
    assert "first value that is not finite: none" in shown
    for line in (
        "student double_blocks.0",
        "teacher double_blocks.0",
        "gradient media_out",
        "update media_out",
        "loss flow/",
    ):
        assert line in shown


def test_the_statistics_are_those_of_the_tensors(tiny_run, capsys, monkeypatch):
    """The gradients' norm over all parameters is the step's; the number of samples is that of the batch."""
    shown = replayed(capsys, str(tiny_run), "--step", "4")
    total = 0.0
    for line in shown.splitlines():
        if found := re.match(r"\s*\S+\s+\S+\s+(\S+)\s+\S+  gradient \S+ (\S+)$", line):
            total += float(found[1]) ** 2 * math.prod(map(int, found[2].split("x")))
    norm = float(re.findall(r"grad_norm: (\S+)", shown)[0])
    assert math.sqrt(total) == pytest.approx(norm, rel=1e-3)  # four digits are printed
    (errors,) = re.findall(r"squared error of (\w+), sample by sample: (.*)", shown)
    flow = float(re.findall(rf"flow/{errors[0]}: (\S+)", shown)[0])
    values = [float(value) for value in errors[1].split()]
    if errors[0] != "video":  # whose given first frames make samples of different weight
        assert sum(values) / len(values) == pytest.approx(flow, rel=1e-3)


def test_the_first_value_that_is_not_finite_is_named(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, 5)
        assert train(tmp_path, "training.save_every=100") == 2
    assert published(tmp_path) == [4]
    with monkeypatch.context() as patch:  # the data are still bad
        spoil(patch, 5)
        shown = replayed(capsys, str(tmp_path), "--step", "5")
    assert re.search(r"first value that is not finite: batch\.segments\.0\.x0$", shown, re.MULTILINE)
    assert "loss: nan (as recorded)" in shown

    def broken(self, step, microbatches):  # one weight of the third block
        with torch.no_grad():
            next(self.student.single_blocks[1].parameters()).view(-1)[0] = math.inf
        return plain(self, step, microbatches)

    plain = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", broken)
    shown = replayed(capsys, str(tmp_path), "--step", "5")
    assert re.search(r"first value that is not finite: student single_blocks\.1", shown)


def test_settings_that_were_changed_since_are_those_of_the_step(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(tmp_path, "training.keep_every=2") == 75
    assert train(tmp_path, "training.keep_every=2", "training.steps=4", "--change", "training.optimizer.lr=1e-4") == 0
    for step, lr in ((3, "0.0001"), (2, "0.003")):
        with monkeypatch.context() as patch:
            if step == 2:  # its checkpoint is gone: from the beginning
                shutil.rmtree(tmp_path / "checkpoints")
                patch.chdir(tmp_path)
            shown = replayed(capsys, str(tmp_path), "--step", str(step))
        assert f"  lr: {lr} (as recorded)" in shown
        assert "recorded:" not in shown


def test_steps_that_cannot_be_made_again_are_refused(tiny_run, tmp_path, capsys):
    for arguments, reason in (
        ([str(tiny_run), "--step", "2"], "no intact checkpoint before it; there are: [3, 6]"),
        ([str(tiny_run), "--step", "0"], "must be at least 1"),
        ([str(tmp_path), "--step", "1"], "holds no run"),
    ):
        assert main(["replay", *arguments]) == 2
        assert reason in capsys.readouterr().err
