"""Loss spikes in a run: left out, saved, the same after a resume, and too many of them stop it."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from core.training.records import read_lines
from core.training.trainer import Trainer
from tests.reliability.test_bad_step import printed
from tests.reliability.test_resume import stop_after
from tests.tools.tiny import published, result, train
from tools.cli import main

AUDIO = ("streams.image=null", "streams.video=null")
SIZES = (*AUDIO, "training.steps=9", "training.save_every=100", "training.spikes={above: 8, window: 8, allowed: 2}")


def spoil(monkeypatch, *steps: int) -> None:
    """Make the latents of these steps, by their numbers in metrics.jsonl, large."""
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step + 1 in steps:
            for part in microbatches[0].parts:
                part.latents.mul_(100.0)
        return plain(self, step, microbatches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_spikes_are_left_out_and_saved_and_a_resume_within_them_has_the_same_bits(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, 6, 7)
        assert train(tmp_path / "whole", *SIZES) == 0
    entries = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [entry["step"] for entry in entries if "spike" in entry] == [6, 7]
    assert entries[5]["loss"] > 100 * entries[4]["loss"]
    assert entries[8]["loss"] < 2 * entries[4]["loss"]
    folder = tmp_path / "whole" / "spikes"
    evidence = json.loads((folder / "step-00000006.json").read_text())
    batch = load_file(folder / "step-00000006-rank-0.safetensors")
    assert evidence["step"] == 5
    assert len(evidence["keys"]) == len(batch["0.parts.0.latents"]) == 2
    assert float(batch["0.parts.0.latents"].abs().max()) > 10
    assert len(list(folder.iterdir())) == 4
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "whole")]) == 0
    assert "spike     step 6 (audio), left out: loss" in capsys.readouterr().out

    with monkeypatch.context() as patch:
        spoil(patch, 6, 7)
        with patch.context() as inner:
            stop_after(inner, 6)
            assert train(tmp_path / "cut", *SIZES) == 75
        assert train(tmp_path / "cut", *SIZES) == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_one_too_many_stops_the_run_with_the_state_before_and_the_commands_to_go_on(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, 6, 7, 8)
        assert train(tmp_path, *SIZES) == 2
    message = capsys.readouterr().err
    assert "error: step 8 (audio) is a spike" in message
    assert published(tmp_path) == [7]
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "failed"
    assert main(printed(message, "skip_steps")) == 0
    assert read_lines(tmp_path / "metrics.jsonl")[7] == {"step": 8, "stream": "audio", "skipped": True}
