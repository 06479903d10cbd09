"""One demonstration, learned by heart, is repeated in closed loop: data, training, sampling and control agree on what
an action means. About 20 seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tools.cli import main

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `robots`)")
CONFIG = Path(__file__).with_name("overfit.yaml")
EPISODE = 1_000_003  # demonstration 3


def rolled(policy: str, out: Path, *options: str) -> dict:
    """Its one episode. Every demonstration begins as the episode of its number does."""
    command = ["rollout", "--env", "kinematic", "--task", "reach", "--policy", policy, "--episodes", "1"]
    assert main([*command, "--first", str(EPISODE), "--out", str(out), "--videos", "0", *options, "size=16"]) == 0
    return json.loads((out / "episodes.jsonl").read_text())


def test_the_replay_of_one_demonstration_succeeds(tmp_path):
    data, config = tmp_path / "set", tmp_path / "overfit.yaml"
    shutil.copy(CONFIG, config)
    made = ["demonstrations", "--env", "kinematic", "--task", "reach", "--episodes", "1", "--first", "3", "--out"]
    assert main([*made, str(data), "size=16"]) == 0
    assert main(["stats", str(config), "--out", str(data / "statistics.json")]) == 0
    assert main(["train", str(config), f"run={tmp_path / 'run'}"]) == 0
    assert not rolled("random", tmp_path / "random")["success"]["any"]
    replay = rolled(str(tmp_path / "run"), tmp_path / "replay", "--k", "2")
    assert replay["success"] == {"last": True, "any": True, "hold": True}
