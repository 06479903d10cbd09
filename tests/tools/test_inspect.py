"""selfflow inspect: runs, finished or hardly begun, checkpoints and data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.modalities.making import numbered, picture_bytes, sound_bytes, tone, video_file
from tests.tools.tiny import STEPS, result
from tools.cli import main


def inspect(capsys, path: Path, *options: str) -> str:
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


def test_a_finished_run(tiny_run, capsys):
    shown = inspect(capsys, tiny_run)
    for expected in (
        "method    self_flow, seed 3",
        "trunk     mmdit, 92,432 parameters",
        f"steps     {STEPS} of {STEPS} published",
        "checkpoint 3: intact",
        f"checkpoint {STEPS}: intact",
        "bad data  0 records",
    ):
        assert expected in shown
    last = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert f"{last['modality']:9} step {STEPS}: lr 0.003, loss {last['loss']:.4g}" in shown


def test_digests_are_those_of_the_weights(tiny_run, capsys):
    shown = inspect(capsys, tiny_run, "--digest").splitlines()
    parts = result(tiny_run)
    assert shown == [f"step {STEPS}", *(f"{part} {parts[part]}" for part in ("student", "teacher", "optimizer"))]
    assert inspect(capsys, tiny_run, "--digest", "--step", "3").splitlines()[0] == "step 3"
    assert main(["inspect", str(tiny_run), "--digest", "--step", "4"]) == 2
    assert "there are: 3, 6" in capsys.readouterr().err


def test_damage_and_bad_records_are_shown(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    (tmp_path / "run" / "quarantine.jsonl").write_text('{"modality": "image", "key": "a"}\n{"moda')
    shown = inspect(capsys, tmp_path / "run")
    assert "checkpoint 6: DAMAGED, state.json" in shown
    assert f"steps     3 of {STEPS} published" in shown
    assert "bad data  1 records, listed in" in shown


def test_a_run_without_a_checkpoint_says_so(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed in the middle of a line
    shown = inspect(capsys, tmp_path / "run")
    assert "no checkpoint yet" in shown
    assert "image     step" in shown
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "no checkpoint yet" in inspect(capsys, tmp_path / "run")
    assert main(["inspect", str(tmp_path / "run"), "--digest"]) == 2
    assert "holds no intact checkpoint" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is no run folder (it has no config.yaml); for data add --data" in capsys.readouterr().err


@pytest.mark.parametrize("captions", [True, False])
def test_data_with_and_without_captions(captions, tmp_path, capsys):
    folder = tmp_path / "grey"
    folder.mkdir()
    for index, pixels in enumerate(numbered(4, 20, 30)):
        (folder / f"{index}.png").write_bytes(picture_bytes(pixels))
        if captions:
            (folder / f"{index}.txt").write_text(f"level {index}")
    (folder / "1.png").write_bytes(b"")
    shown = inspect(capsys, tmp_path, "--data", "image", "--number", "3")
    assert "4 image records, 1 labels" in shown
    caption = "level 2" if captions else "(no caption)"
    assert f"grey/2.png: (3, 16, 16), label grey, captions ['{caption}']" in shown
    assert "cannot be used: " in shown
    assert "1.png" in shown
    assert "3.png" not in shown


def test_clips_and_sounds(tmp_path, capsys):
    video_file(tmp_path / "clip.mp4", numbered(30))
    (tmp_path / "tone.wav").write_bytes(sound_bytes(tone(1.5, 8000), 8000))
    assert "clip.mp4: (9, 3, 16, 16)" in inspect(capsys, tmp_path, "--data", "video")
    assert "tone.wav: (1, 4000)" in inspect(capsys, tmp_path, "--data", "audio")
    assert main(["inspect", str(tmp_path / "nowhere"), "--data", "audio"]) == 2
    assert "does not exist" in capsys.readouterr().err
