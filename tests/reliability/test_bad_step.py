"""A run that met a NaN: what is published, what is said, and that the printed command goes on."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from configs.load import load_config
from core.training.records import read_lines
from core.training.trainer import Trainer
from modalities.base import AutoencoderAdapter
from modalities.image import ImageAdapter
from modalities.synthetic.draw import SyntheticSource
from tests.reliability.test_resume import stop_after
from tests.tools.tiny import CONFIG, published, result, train
from tools.cli import main


def spoil(monkeypatch, *steps: int) -> None:
    """Make the clean latents of these steps, by their numbers in metrics.jsonl, NaN."""
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step + 1 in steps:
            for part in microbatches[0].parts:
                part.latents.fill_(float("nan"))
        return plain(self, step, microbatches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def printed(message: str, having: str) -> list[str]:
    """The arguments of the printed command whose last one has these words."""
    commands = [shlex.split(line) for line in message.splitlines() if line.startswith("  selfflow ")]
    (found,) = [command for command in commands if having in command[-1]]
    return found[1:]


def metrics(run: Path) -> list[dict]:
    return read_lines(run / "metrics.jsonl")


def test_the_state_before_a_bad_step_is_published_and_the_printed_command_leaves_it_out(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 5)
    assert train(tmp_path, "training.save_every=100") == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert published(tmp_path) == [4]
    assert "error: step 5 (" in message
    assert "bad_step.json" in message
    assert train(tmp_path, "training.save_every=100") == 2  # the plain command meets it again
    again = capsys.readouterr().err
    assert printed(again, "skip_steps") == printed(message, "skip_steps")
    assert main(printed(message, "skip_steps")) == 0
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert metrics(tmp_path)[4].keys() == {"step", "stream", "skipped"}
    assert "loss" in metrics(tmp_path)[5]
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 0
    assert "left out  step 5" in capsys.readouterr().out
    assert train(tmp_path, "training.save_every=100", "training.steps=7") == 0  # and it stays left out


def test_a_left_out_step_updates_nothing_and_consumes_its_data(tmp_path):
    assert train(tmp_path / "a", "training.steps=3", "training.skip_steps=[2]") == 0
    assert train(tmp_path / "whole", "training.steps=3") == 0
    ours, whole = metrics(tmp_path / "a"), metrics(tmp_path / "whole")
    assert ours[0] == whole[0]
    assert ours[1] == {"step": 2, "stream": whole[1]["stream"], "skipped": True}
    assert ours[2]["stream"] == whole[2]["stream"]
    assert ours[2]["lr"] == whole[2]["lr"]


def test_halving_the_learning_rate_by_the_printed_command(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, 4)
        assert train(tmp_path, "training.optimizer.lr=2e-3") == 2
    arguments = printed(capsys.readouterr().err, "optimizer.lr")
    assert arguments[-2:] == ["--change", "training.optimizer.lr=0.001"]
    assert main(arguments) == 0
    assert [entry["lr"] for entry in metrics(tmp_path)] == [0.002] * 3 + [0.001] * 3


def test_several_bad_steps_in_a_row_are_told_as_such(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 3, 4, 5)
    assert train(tmp_path) == 2
    arguments = printed(capsys.readouterr().err, "skip_steps")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "bad step number 2 in a row" in message
    arguments = printed(message, "skip_steps")
    assert arguments[-1] == "training.skip_steps=[3,4]"
    assert main(arguments) == 2
    assert main(printed(capsys.readouterr().err, "skip_steps")) == 0
    assert [entry["step"] for entry in metrics(tmp_path) if "skipped" in entry] == [3, 4, 5]


def test_a_bad_first_step_of_a_new_run_can_be_left_out_too(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 1)
    assert train(tmp_path) == 2
    message = capsys.readouterr().err
    assert "There is no checkpoint yet" in message
    assert main(printed(message, "optimizer.lr")) == 2
    capsys.readouterr()
    assert main(printed(message, "skip_steps")) == 0
    assert published(tmp_path)[-1] == 6


def test_weights_that_are_not_finite_are_never_published(tmp_path, monkeypatch, capsys):
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        found = plain(self, step, microbatches)
        if step + 1 == 5:
            with torch.no_grad():
                self.student.media_out["image"].bias.fill_(float("inf"))
        return found

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert train(tmp_path, "training.steps=5") == 2
    message = capsys.readouterr().err
    assert "after step 5 the weights hold NaN or infinity; they were not published" in message
    assert "The last checkpoint is of step 3" in message
    assert published(tmp_path) == [3]
    assert printed(message, "optimizer.lr")[-1] == "training.optimizer.lr=0.0015"


def test_a_step_that_is_done_cannot_be_left_out(tiny_run, capsys):
    assert train(tiny_run, "training.steps=8", "training.skip_steps=[2]") == 2
    assert "training.skip_steps: step 2 is done already" in capsys.readouterr().err
    assert train(tiny_run, "training.steps=8", "training.skip_steps=[0]") == 2
    assert "skip_steps: 0 must be at least 1" in capsys.readouterr().err


def test_a_record_that_makes_the_loss_infinite_is_passed_by_the_printed_commands(tmp_path, capsys, monkeypatch):
    """The latents of one image of twelve overflow since the run was started; the training itself is left alone."""
    arguments = ["train", str(CONFIG), f"run={tmp_path}", "streams.video=null", "streams.audio=null"]
    arguments += ["streams.image.data.count=12", "training.save_every=100"]
    assert main([*arguments, "training.steps=2"]) == 0
    record, draw = SyntheticSource("image", size=8, count=12).read(7), torch.Generator().manual_seed(0)
    plain, adapter = AutoencoderAdapter.encode, ImageAdapter(load_config(CONFIG, []).streams["image"].media)
    good = adapter.encode(adapter.load(record, draw)[None])

    def encode(self, media, noise=None):
        latents = plain(self, media, noise)
        return torch.where((latents == good).all(dim=(1, 2), keepdim=True), latents * 1e30, latents)

    monkeypatch.setattr(AutoencoderAdapter, "encode", encode)
    capsys.readouterr()
    code, met = main(arguments), 0
    while code == 2 and met < 5:
        met += 1
        code = main(printed(capsys.readouterr().err, "skip_steps"))
    assert code == 0
    assert 1 <= met <= 2  # four steps of four images
    assert len([entry for entry in metrics(tmp_path) if "skipped" in entry]) == met
    assert result(tmp_path)["step"] == 6


@pytest.mark.parametrize("steps", ["[3, 4]", "[4]"])
def test_left_out_steps_resume_with_the_same_bits(steps, tmp_path, monkeypatch):
    assert train(tmp_path / "whole", f"training.skip_steps={steps}") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(tmp_path / "cut", f"training.skip_steps={steps}") == 75
    assert train(tmp_path / "cut") == 0  # noted in config.yaml
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
