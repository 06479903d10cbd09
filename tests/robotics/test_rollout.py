"""Rollouts: what is recorded, what survives a crash, what two runs are compared by, and what is printed."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import AccidentError, ConfigError
from core.parallel import spread
from robotics.environment import Observation, Step
from robotics.kinematic.environment import KinematicEnvironment
from robotics.report import compare, published_rows, summarize, table
from robotics.rollout import Rollout, run_episode, run_episodes
from robotics.rollout_folder import RolloutFolder, missing, read_records, read_result
from robotics.videos import Film
from tools.cli import main

ARGUMENTS = ["rollout", "--env", "kinematic", "--task", "pick", "--videos", "0"]


def rolled(out: Path, policy: str, *more: str) -> int:
    return main([*ARGUMENTS, "--policy", policy, "--out", str(out), *more, "size=16"])


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seconds", "policy_s")}


class Scripted:
    """An environment of 5 steps that is fulfilled when it is told to be."""

    name, task, fps, max_steps, episodes = "scripted", "any", 3.0, 5, None
    state_names: tuple[str, ...] = ()

    def __init__(self, fulfilled: list[int]):
        self.fulfilled, self.protocol = fulfilled, {}

    def reset(self, episode: int) -> Observation:
        self.steps = 0
        return self.seen()

    def seen(self) -> Observation:
        image = np.full((4, 6, 3), 10 * self.steps, dtype=np.uint8)
        return Observation(
            image=image, state=np.zeros(0, np.float32), instruction="first" if self.steps < 2 else "then"
        )

    def step(self, action: np.ndarray) -> Step:
        success = bool(self.fulfilled[self.steps])
        self.steps += 1
        return Step(self.seen(), float(success), success, self.steps == 5, {"steps": self.steps})

    def expert(self) -> None:
        return None

    def close(self) -> None:
        return None


class Imagining:
    """Predicts a video of three frames at its first and third step."""

    predicted_video: np.ndarray | None = None

    def reset(self, instruction: str, seed: int = 0) -> None:
        self.step, self.predicted_video = 0, None

    def select_action(self, observation: Observation) -> np.ndarray:
        if self.step % 2 == 0:
            frames = (100 * (1 + self.step // 2) + np.arange(3)).astype(np.uint8)
            self.predicted_video = np.broadcast_to(frames[:, None, None, None], (3, 2, 3, 3))
        self.step += 1
        return np.zeros(7)


def test_a_policy_that_lifts_and_drops_fails_by_the_headline_only():
    record, film = run_episode(Scripted([0, 1, 1, 1, 0]), Imagining(), 3, 0)
    assert record["success"] == {"last": False, "any": True, "hold": False}
    assert (record["episode_ix"], record["steps"], record["sum_reward"], record["max_reward"]) == (3, 5, 3, 1)
    assert (record["first_success"], record["info"]) == (2, {"steps": 5})
    assert (record["instruction"], record["later_instructions"]) == ("first", ["then"])
    assert film is None
    result = summarize([record], Rollout("scripted", "any", "x").settings(), {})
    assert result["per_episode"][0]["success"] is False
    assert result["aggregated"]["pc_success"] == 0
    assert result["selfflow"]["success"]["any"]["rate"] == 1


def test_a_film_shows_beside_each_image_what_was_predicted_of_it():
    _, film = run_episode(Scripted([0] * 5), Imagining(), 0, 0, filmed=True)
    assert film is not None
    shown = [None if frame is None else int(frame[0, 0, 0]) for frame in film.predicted]
    # Step 0 predicts 100 101 102: images 1 and 2 show 101, 102; step 2 predicts 200 ..., step 4 again (as 44: uint8).
    assert shown == [None, 101, 102, 201, 202, 45]
    frames = film.frames()
    assert frames.shape == (6, 4, 6 + 2 + 6, 3)
    assert frames[2, 0, 0, 0] == 20
    assert frames[2, 0, -1, 0] == 102
    assert Film([np.zeros((4, 6, 3), np.uint8)]).frames().shape == (1, 4, 6, 3)  # nothing predicted: no second half


def test_the_command_writes_lerobots_fields_and_ours(tmp_path, capsys):
    assert rolled(tmp_path / "expert", "expert", "--episodes", "6") == 0
    result = json.loads((tmp_path / "expert/eval_info.json").read_text())
    assert set(result) == {"per_episode", "aggregated", "video_paths", "selfflow"}
    assert [entry["episode_ix"] for entry in result["per_episode"]] == list(range(6))
    assert all(entry["success"] is True for entry in result["per_episode"])
    assert set(result["aggregated"]) == {"avg_sum_reward", "avg_max_reward", "pc_success", "eval_s", "eval_ep_s"}
    assert result["aggregated"]["pc_success"] == 100
    ours = result["selfflow"]
    assert ours["protocol"]["variant"] == "kinematic"
    assert ours["success"]["last"]["wilson_95"] == pytest.approx([0.6097, 1], abs=1e-4)
    assert ours["few_episodes"] is True
    assert "| expert | kinematic | pick | kinematic | 6 † | 100.0 [61.0, 100.0]" in capsys.readouterr().out


def test_finished_episodes_survive_a_crash_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    out, reset = tmp_path / "run", KinematicEnvironment.reset

    def failing(self, episode: int) -> Observation:
        if episode == 3:
            raise AccidentError("the renderer is gone")
        return reset(self, episode)

    monkeypatch.setattr(KinematicEnvironment, "reset", failing)
    assert rolled(out, "random", "--episodes", "5") == 75
    assert "the renderer is gone" in capsys.readouterr().err
    assert sorted(read_records(out)) == [0, 1, 2]
    assert not (out / "eval_info.json").exists()
    with (out / "episodes.jsonl").open("a") as file:
        file.write('{"episode_ix": 3, "st')  # what a kill leaves
    run = []
    monkeypatch.setattr(
        KinematicEnvironment, "reset", lambda self, episode: run.append(episode) or reset(self, episode)
    )
    assert rolled(out, "random", "--episodes", "5") == 0
    assert run == [3, 4]
    whole = tmp_path / "whole"
    assert rolled(whole, "random", "--episodes", "5") == 0
    assert [untimed(entry) for entry in read_records(out).values()] == [
        untimed(entry) for entry in read_records(whole).values()
    ]


def test_other_settings_do_not_go_on_in_the_same_folder(tmp_path, capsys):
    out = tmp_path / "run"
    assert rolled(out, "zero", "--episodes", "1") == 0
    assert rolled(out, "random", "--episodes", "1") == 2
    assert "holds a rollout with policy 'zero', now it is 'random'" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and holds no rollout"):
        RolloutFolder(tmp_path / "full", {})


def test_two_runs_are_compared_by_episode(tmp_path, capsys):
    assert rolled(tmp_path / "expert", "expert", "--episodes", "7") == 0
    compared = ("--episodes", "5", "--compare", str(tmp_path / "expert"))
    assert rolled(tmp_path / "zero", "zero", *compared) == 0
    assert "only zero succeeds in 0, only expert in 5, both in 0, neither in 0; McNemar's exact p 0.0625" in (
        capsys.readouterr().out
    )
    found = read_result(tmp_path / "zero")["selfflow"]["compared"][0]
    assert (found["episodes"], found["rules"]["any"]["second_only"]) == (5, 5)
    other = json.loads(json.dumps(read_result(tmp_path / "zero")))
    other["selfflow"]["settings"]["task"] = "reach"
    with pytest.raises(ConfigError, match="task reach and of task pick cannot be compared"):
        compare(other, read_result(tmp_path / "expert"))


@pytest.mark.slow
def test_workers_change_no_result_and_their_errors_arrive(tmp_path):
    rollout = Rollout("kinematic", "reach", "random", seed=4, options={"size": 16})
    work = partial(run_episodes, rollout, frozenset(), tmp_path)
    alone, together = (list(spread(work, range(5), workers)) for workers in (1, 2))
    together.sort(key=lambda record: record["episode_ix"])
    assert [untimed(record) for record in together] == [untimed(record) for record in alone]
    assert len({record["seed"] for record in alone}) == 5


@pytest.mark.slow
def test_an_error_of_a_worker_is_the_commands_error(tmp_path):
    rollout = Rollout("kinematic", "reach", "random", options={"size": 4})
    with pytest.raises(ConfigError, match="an image of 4 pixels"):
        list(spread(partial(run_episodes, rollout, frozenset(), tmp_path), range(4), 2))


def test_published_numbers_stand_beside_those_of_the_same_protocol_only():
    record, _ = run_episode(Scripted([1] * 5), Imagining(), 0, 0)
    of = {"task": "pick_coke_can", "variant": "visual_matching"}
    simpler = summarize([record], Rollout("simpler", "pick_coke_can", "x").settings(), {"published": of})
    text = table([simpler])
    assert "Published for pick_coke_can, visual matching" in text
    assert "| VideoVLA (video and actions) | 92.3 |" in text
    assert "Published" not in table([summarize([record], Rollout("kinematic", "pick", "x").settings(), {})])
    assert published_rows({"task": "fold_towel", "variant": "visual_matching"}) == []


def test_missing_episodes():
    assert missing({0: {}, 3: {}}, range(5)) == [1, 2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--env", "simplr"], "environment: 'simplr' is not one of"),
        (["--policy", "expart"], "'expart' is neither one of expert.*Did you mean: 'expert'"),
        (["--episodes", "0"], "--episodes: 0 must be at least 1"),
        (["--compare", "nowhere"], "nowhere holds no finished rollout"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, change, message):
    arguments = [*ARGUMENTS, "--policy", "zero", "--out", str(tmp_path / "run"), *change]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_filmed_episodes_are_videos_at_the_control_rate(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed (extra `media`)")
    assert rolled(tmp_path / "run", "expert", "--episodes", "2", "--videos", "1") == 0
    result = read_result(tmp_path / "run")
    assert result["video_paths"] == ["videos/episode_000000.mp4"]
    with av.open(str(tmp_path / "run" / result["video_paths"][0])) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].average_rate == 3
    assert len(frames) == result["per_episode"][0]["steps"] + 1
