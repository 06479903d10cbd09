"""Demonstrations -> statistics -> training -> a policy in closed loop, on the tabletop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.latents.source import LatentsConfig
from robotics.environment import Observation
from robotics.kinematic.environment import KinematicEnvironment
from robotics.policies import make_policy
from robotics.policy import PolicySettings, RunPolicy
from tools.cli import main
from tools.serve import served

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `robots`)")
CONFIG = Path(__file__).with_name("tabletop.yaml")


def trained(place: Path, episodes: int, *overrides: str) -> Path:
    """A run on demonstrations of `reach`."""
    shutil.copy(CONFIG, place / "tabletop.yaml")
    config, data, run = str(place / "tabletop.yaml"), str(place / "set"), place / "run"
    made = ["demonstrations", "--env", "kinematic", "--task", "reach", "--episodes", str(episodes), "--out", data]
    assert not main([*made, "size=16"])
    assert main(["stats", config, "--out", f"{data}/statistics.json"]) == 0
    assert main(["train", config, f"run={run}", *overrides]) == 0
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("policy"), 30)


@pytest.fixture
def seen() -> Iterator[Observation]:
    environment = KinematicEnvironment("reach", 16)
    yield environment.reset(3)
    environment.close()


def test_a_chunk_is_a_function_of_seed_number_and_observation(run, seen):
    policy = RunPolicy.from_pretrained(run)
    chunks = []
    for seed in (5, 5, 6):
        policy.reset("reach can", seed)
        chunks.append([policy.predict_action_chunk(seen) for _ in range(2)])
    assert chunks[0][0].shape == (3, 7)
    assert np.isfinite(chunks[0][0]).all()
    assert all(np.array_equal(one, other) for one, other in zip(chunks[0], chunks[1], strict=True))
    assert not np.array_equal(chunks[0][0], chunks[0][1])
    assert not np.array_equal(chunks[0][0], chunks[2][0])


def test_numbers_that_never_vary_come_back_as_they_are(run, seen):
    """Of the tabletop's demonstrations the rotations are always 0."""
    policy = RunPolicy.from_pretrained(run)
    assert not policy.predict_action_chunk(seen)[:, 3:6].any()


def test_the_predicted_video_begins_with_what_was_seen(run, seen):
    policy = RunPolicy.from_pretrained(run)
    assert policy.predicted_video is None
    policy.predict_action_chunk(seen)
    assert policy.predicted_video.shape == (5, 8, 8, 3)  # what is seen, and 4 frames
    assert policy.predicted_video.dtype == np.uint8
    small = seen["image"].reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert np.abs(policy.predicted_video[0] - small).mean() < 12  # another filter
    policy.reset("reach can")
    assert policy.predicted_video is None


def test_latents_do_not_say_when_their_video_begins(run, seen):
    policy = RunPolicy.from_pretrained(run)
    policy.loaded.config.streams["tabletop"].data = LatentsConfig(path="latents")
    again = RunPolicy(policy.loaded)
    assert again.predict_action_chunk(seen).shape == (3, 7)
    assert again.predicted_video is None


def test_what_needs_a_given_part_has_no_previews(run, capsys):
    config = str(run.parent / "tabletop.yaml")
    assert main(["train", config, f"run={run.parent / 'watched'}", "training.preview.every=2"]) == 2
    told = capsys.readouterr().err
    assert "note: tabletop has no previews: its image and state would have to be given" in told
    assert "training.preview.every: nothing can be previewed" in told


@pytest.mark.parametrize(("settings", "sees"), [({"mode": "fast"}, False), ({"video_steps": 0}, False)])
def test_without_a_video_there_is_no_predicted_video(run, seen, settings, sees):
    policy = RunPolicy.from_pretrained(run, **settings)
    assert policy.predict_action_chunk(seen).shape == (3, 7)
    assert (policy.predicted_video is not None) == sees


def test_fewer_steps_of_the_video(run, seen):
    policy = RunPolicy.from_pretrained(run, video_steps=1)
    policy.predict_action_chunk(seen)
    assert policy.predicted_video is not None


def test_a_chunk_is_executed_as_far_as_asked(run, seen):
    policy = RunPolicy.from_pretrained(run, execute=2)
    policy.reset("reach can", 1)
    taken = [policy.select_action(seen) for _ in range(4)]
    policy.reset("reach can", 1)
    chunks = [policy.predict_action_chunk(seen) for _ in range(2)]
    assert np.array_equal(np.stack(taken), np.concatenate([chunk[:2] for chunk in chunks]))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"instruction": " "}, "without an instruction"),
        ({"state": np.zeros(3, np.float32)}, "3 numbers; the run was trained on 4"),
        ({"state": np.full(4, np.nan, np.float32)}, "not finite"),
        ({"image": np.zeros((16, 16), np.uint8)}, r"needed is uint8 \(H, W, 3\)"),
        ({"image": np.zeros((16, 16, 3), np.float32)}, r"float32 \(16, 16, 3\)"),
    ],
)
def test_an_observation_that_cannot_be_used(run, seen, changed, says):
    policy = RunPolicy.from_pretrained(run)
    with pytest.raises(DataError, match=says):
        policy.predict_action_chunk({**seen, **changed})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "quick"}, "'quick' is not one of joint, fast"),
        ({"execute": -1}, "at least 1"),
        ({"execute": 4}, "the policy predicts 3"),
        ({"mode": "fast", "video_steps": 2}, "is not read with mode fast"),
        ({"steps": 0}, "steps: 0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be(run, seen, settings, says):
    with pytest.raises(ConfigError, match=says):
        RunPolicy.from_pretrained(run, **settings).select_action(seen)


def test_a_run_without_actions_cannot_act(tiny_run):
    with pytest.raises(ConfigError, match="no stream with actions"):
        RunPolicy.from_pretrained(tiny_run)


def test_settings_of_a_run_are_refused_for_other_policies():
    environment = KinematicEnvironment("reach", 16)
    with pytest.raises(ConfigError, match="execute: of the policy of a run, and random is none"):
        make_policy("random", environment, {"execute": 2})
    with pytest.raises(ConfigError, match=r"neither one of expert, random.*Did you mean: 'random'"):
        make_policy("randum", environment)


def test_a_rollout_of_a_run(run, tmp_path, capsys):
    arguments = ["rollout", "--env", "kinematic", "--task", "reach", "--policy", str(run), "--out", str(tmp_path)]
    assert not main([*arguments, "--episodes", "2", "--videos", "1", "--k", "2", "size=16"])
    found = json.loads((tmp_path / "eval_info.json").read_text())
    assert found["selfflow"]["settings"]["acting"] == {"execute": 2, "step": 3}
    assert len(found["per_episode"]) == 2
    assert (tmp_path / "videos" / "episode_000000.mp4").stat().st_size > 0
    assert PolicySettings(**found["selfflow"]["settings"]["acting"]).execute == 2


def test_episodes_of_one_rollout_have_one_checkpoint(run, tmp_path, capsys):
    """A run that was trained further, or anew in the same folder, does not go on with the episodes of another."""
    tuned = tmp_path / "run"
    shutil.copytree(run, tuned)
    arguments = ["rollout", "--env", "kinematic", "--task", "reach", "--policy", str(tuned), "size=16"]
    first, second = ([*arguments, "--out", str(tmp_path / name), "--episodes"] for name in ("first", "second"))
    assert not main([*first, "1"])
    config = ["train", str(run.parent / "tabletop.yaml"), f"run={tuned}"]
    assert not main([*config, "training.steps=6", "--change", "training.steps=6"])
    capsys.readouterr()
    assert main([*first, "2"]) == 2
    told = capsys.readouterr().err
    assert "'step': 3" in told
    assert "'step': 6" in told
    assert not main([*first, "2", "--step", "3"])
    assert not main([*second, "1"])
    shutil.rmtree(tuned)
    assert not main([*config, "seed=1", "training.steps=6", "training.save_every=6"])
    assert main([*second, "2"]) == 2
    assert "holds a rollout with checkpoint" in capsys.readouterr().err


def test_the_open_loop_of_a_run(run, tmp_path, capsys):
    data = run.parent / "set"
    arguments = ["rollout", "--open-loop", str(data), "--policy", str(run), "--out", str(tmp_path / "out")]
    assert not main([*arguments, "--episodes", "2"])
    found = json.loads((tmp_path / "out" / "open_loop.json").read_text())
    steps = [json.loads(line)["length"] for line in (data / "meta" / "episodes.jsonl").read_text().splitlines()[:2]]
    assert found["windows"] == sum(steps)
    assert found["horizon"] == 3
    assert found["counts"] == [sum(steps), sum(steps) - 2, sum(steps) - 4]
    assert "constant predictor" in capsys.readouterr().out
    assert main([*arguments, "--first", "30"]) == 2
    assert main([*arguments, "--env", "kinematic", "--task", "reach"]) == 2


def test_rotations_that_are_read_in_another_way(run):
    class Reading(KinematicEnvironment):
        def __init__(self):
            super().__init__("reach", 16)
            self.protocol["rotation"] = "axis_angle"

    policy = RunPolicy.from_pretrained(run)
    assert policy.rotation == "rpy"
    with pytest.raises(ConfigError, match="its rotations are rpy, and the environment reads them as axis_angle"):
        make_policy(str(run), Reading())


def test_sessions_of_a_server_share_the_weights_of_a_run(run):
    inference = served(str(run), {"mode": "fast"})
    first, second = inference.make_policy(), inference.make_policy()
    assert first is not second
    assert first.loaded is second.loaded
    assert first.settings.mode == "fast"
    inference.close()


def test_fine_tuning_takes_the_statistics_of_the_new_data(run, tmp_path, capsys):
    """What an action means is said by the file of the new data; images keep what the weights are used to."""
    data, config = tmp_path / "set", tmp_path / "tabletop.yaml"
    shutil.copy(CONFIG, config)
    made = ["demonstrations", "--env", "kinematic", "--task", "open_drawer", "--episodes", "4", "--out", str(data)]
    assert not main([*made, "size=16"])
    assert not main(["stats", str(config), "--out", f"{data}/statistics.json"])
    capsys.readouterr()
    assert not main(["finetune", str(config), "--from", str(run), f"run={tmp_path / 'tuned'}"])
    told = capsys.readouterr().err
    assert "latent statistics of action: those of its file" in told
    before, after = (
        RunPolicy.from_pretrained(folder).loaded.generator.normalization for folder in (run, tmp_path / "tuned")
    )
    file = json.loads((data / "statistics.json").read_text())["action"]
    low, high = np.array(file["q01"][:3]), np.array(file["q99"][:3])
    np.testing.assert_allclose(after["action"].mean[:3], (low + high) / 2, atol=1e-6)
    assert after["action"].digest != before["action"].digest
    assert after["image"].to_dict() == before["image"].to_dict()
