"""What each use of a run is worth, against numbers known by construction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import robotics.uses
from core.errors import ConfigError
from robotics.demonstrated import demonstrated_records
from robotics.policy import RunPolicy
from robotics.uses import examples, measure_uses, uses_table
from tests.robotics.test_policy import trained
from tools.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("uses"), 4)


def test_errors_are_those_of_what_was_generated(run, monkeypatch):
    """A stand-in for the network makes known mistakes in each use, and looks at what it is given."""
    policy = RunPolicy.from_pretrained(run)
    windows = examples(policy, list(demonstrated_records(policy, run.parent / "set", range(4), 6)))
    assert len(windows) == 6
    truth = {id(window.media["image"]): window.media for window in windows}
    asked = []

    def network(model, stream, prompts, config, seed, known, batch_size):
        omitted = {name for name, part in config.parts.items() if not part.sampled}
        asked.append((frozenset(known[0]) - {"image", "state"}, frozenset(omitted)))
        for row in known:
            right = truth[id(row["image"].media)]
            made = {"action": right["action"] + (0.3 if "video" in omitted else 0.2), "video": right["video"] + 0.5}
            if "video" in row:
                made["action"] = right["action"] - 0.1
            if "action" in row:
                same = torch.equal(row["action"].media, right["action"])
                made["video"] = right["video"] + (0.1 if same else 0.2)
            if "action" in omitted:
                made["video"] = right["video"] - 0.3
            yield {name: media for name, media in made.items() if name not in omitted}

    monkeypatch.setattr(robotics.uses, "generate", network)
    report = measure_uses(policy, windows)
    assert asked == [
        (frozenset(), frozenset()),
        (frozenset(), {"video"}),
        ({"video"}, frozenset()),
        ({"action"}, frozenset()),
        ({"action"}, frozenset()),
        (frozenset(), {"action"}),
    ]
    found = [report[use]["action_error"] for use in ("policy", "fast_policy", "inverse_dynamics")]
    assert found == pytest.approx([0.2, 0.3, 0.1], rel=1e-5)
    found = [report[use]["video_error"] for use in ("joint_video", "world_model", "video_plan")]
    assert found == pytest.approx([0.25, 0.01, 0.09], rel=1e-5)
    different = [
        not torch.equal(window.media["action"], windows[place - 3].media["action"])
        for place, window in enumerate(windows)
    ]
    expected = sum(0.04 if other else 0.01 for other in different) / 6
    assert report["world_model"]["shuffled"] == pytest.approx(expected, rel=1e-5)
    assert report["world_model"]["ratio"] == pytest.approx(0.01 / expected, rel=1e-5)
    assert 0 < report["world_model"]["still"] < 0.25
    actions = torch.cat([window.media["action"][window.valid["action"]] for window in windows])
    assert report["policy"]["constant"] == pytest.approx((actions - actions.mean(0)).abs().mean().item(), rel=1e-5)
    assert "| world model | video error 0.0100 |" in uses_table(report)
    with pytest.raises(ConfigError, match="1 windows; needed are 2"):
        measure_uses(policy, windows[:1])


def test_the_command_measures_every_use(run, tmp_path, capsys):
    command = ["rollout", "--open-loop", str(run.parent / "set"), "--policy", str(run), "--episodes", "2"]
    assert main([*command, "--uses", "4", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for use in ("policy", "fast policy", "inverse dynamics", "world model", "joint video", "video plan"):
        assert f"| {use} | " in shown
    assert (tmp_path / "out/uses.json").exists()
    assert main([*command, "--uses", "4", "--mode", "fast", "--out", str(tmp_path / "b")]) == 2
    assert "--uses: measures every mode" in capsys.readouterr().err
    rollout = ["rollout", "--env", "kinematic", "--task", "reach", "--policy", "zero", "--out", str(tmp_path / "a")]
    assert main([*rollout, "--uses", "4"]) == 2
    assert "--uses: only with --open-loop DATA" in capsys.readouterr().err
