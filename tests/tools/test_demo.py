"""selfflow demo: one command from nothing to files that are read back; its quality is not looked at here."""

from __future__ import annotations

from pathlib import Path

from core.training.records import read_lines
from tools.cli import main
from tools.demo import PROMPTS

QUICK = (
    *("training.steps=3", "training.optimizer.cooldown=0", "training.device=cpu"),
    *(f"streams.{name}.{setting}" for name in PROMPTS for setting in ("batch=2", "sampling.steps=2")),
)


def test_the_demo_trains_generates_and_reads_its_files_back(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["demo", f"run={run}", *QUICK]) == 0
    shown = capsys.readouterr().out.splitlines()
    for modality, prompts in PROMPTS.items():
        files = [path for path in (run / "generated" / modality).iterdir() if path.name[0] == "0"]
        assert len(files) == 2 * len(prompts)  # each with its JSON
        (line,) = [line for line in shown if line.strip().startswith(f"{modality}:")]
        assert "%" in line
    assert shown[-1].endswith(f"look at {run / 'generated'}")
    assert len(read_lines(run / "metrics.jsonl")) == 3
    assert (run / "generated" / "image" / "grid.png").exists()

    before = (run / "metrics.jsonl").read_bytes()
    assert main(["demo", f"run={run}", *QUICK]) == 0  # again: nothing is trained, the files are made anew
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_demo_needs_a_folder_and_knows_its_settings(capsys):
    assert main(["demo"]) == 2
    assert "add run=FOLDER" in capsys.readouterr().err
    assert main(["demo", f"run={Path('x')}", "training.stpes=3"]) == 2
    assert "Did you mean: 'steps'?" in capsys.readouterr().err
