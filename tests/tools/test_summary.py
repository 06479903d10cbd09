"""The last lines of a command: how long it took and what to type next; --quiet leaves them out."""

from __future__ import annotations

import shlex

import pytest

from tests.tools.tiny import CONFIG
from tools.cli import build_parser, main
from tools.summary import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1 min 0 s"), (192.4, "3 min 12 s"), (18_190, "5 h 3 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def following(error: str) -> list[list[str]]:
    lines = error.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("took ") and line.endswith(" s. Next:"))
    return [shlex.split(line) for line in lines[place + 1 :]]


def test_what_comes_next_can_be_typed(tiny_run, tmp_path, capsys):
    run = tmp_path / "a run"
    assert main(["train", str(CONFIG), f"run={run}", "training.steps=1", "training.save_every=1"]) == 0
    error = capsys.readouterr().err
    generate, report = following(error)
    assert generate == ["selfflow", "generate", "image", "--run", str(run), "--prompt", "TEXT"]
    assert report == ["selfflow", "report", str(run)]
    assert main([*generate[1:], "--steps", "1"]) == 0
    captured = capsys.readouterr()
    for typed in following(captured.err):
        build_parser().parse_args(typed[1:])
    assert [line for line in captured.err.splitlines() if "1/1 step" in line]  # no terminal: a line, not a bar
    assert "\r" not in captured.err


def test_quiet_leaves_results_and_errors_alone(tiny_run, tmp_path, capsys):
    typed = ["generate", "image", "--run", str(tiny_run), "--prompt", "a cat", "--out", str(tmp_path), "--steps", "1"]
    assert main([*typed, "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("1 files in ")
    assert error == ""
    assert main(["--quiet", *typed[:-1], "0"]) == 2  # as well before the command
    assert "--steps: 0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("place", [0, 1, 2])
def test_quiet_stands_anywhere(place):
    typed = ["generate", "image", "--run", "runs/mine", "--prompt", "a cat"]
    assert build_parser().parse_args([*typed[:place], "--quiet", *typed[place:]]).quiet
    assert not build_parser().parse_args(typed).quiet


def test_of_several_processes_the_first_says_it(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    typed = ["generate", "image", "--run", str(tiny_run), "--prompt", "a cat", "--out", str(tmp_path), "--steps", "1"]
    assert main(typed) == 0
    assert "took " not in capsys.readouterr().err
