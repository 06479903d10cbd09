"""Demonstrations as a LeRobot data set: read back with pyarrow alone, and replayed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError, DataError
from robotics.demonstrations import FIRST, Recording, demonstrate, record
from robotics.environment import Step
from robotics.kinematic.environment import KinematicEnvironment
from robotics.lerobot_files import LeRobotWriter
from tools.cli import main

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra `data`)")
OPTIONS = {"size": 16}


def recordings(*tasks: str, **changes) -> list[Recording]:
    return [Recording("kinematic", task, OPTIONS, **changes) for task in tasks]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations") / "set"
    told = []
    left_out = record(recordings("reach", "pick"), 6, folder, 1, lambda: told.append(1))
    assert left_out == {"reach": 0, "pick": 0}
    assert len(told) == 12
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_layout_is_that_of_format_2_1(written):
    info = json.loads((written / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"]) == ("v2.1", 3, 12)
    episodes = lines(written / "meta/episodes.jsonl")
    assert info["total_frames"] == sum(entry["length"] for entry in episodes)
    tasks = {entry["task_index"]: entry["task"] for entry in lines(written / "meta/tasks.jsonl")}
    row = 0
    for entry in episodes:
        number = entry["episode_index"]
        path = written / info["data_path"].format(episode_chunk=number // info["chunks_size"], episode_index=number)
        table = parquet.read_table(path)
        assert table.column_names == list(info["features"])
        assert table["frame_index"].to_pylist() == list(range(entry["length"]))
        assert table["index"].to_pylist() == list(range(row, row + entry["length"]))
        assert set(table["episode_index"].to_pylist()) == {number}
        assert [tasks[index] for index in set(table["task_index"].to_pylist())] == entry["tasks"]
        assert table["timestamp"].to_pylist() == pytest.approx([step / 3 for step in range(entry["length"])])
        row += entry["length"]
    kinds = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert kinds["observation.images.overhead"] == {"_type": "Image"}
    assert kinds["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 7, "_type": "Sequence"}


def test_statistics_are_those_of_the_rows(written):
    for entry in lines(written / "meta/episodes_stats.jsonl")[:3]:
        table = parquet.read_table(written / f"data/chunk-000/episode_{entry['episode_index']:06d}.parquet")
        actions = np.array(table["action"].to_pylist())
        assert entry["stats"]["action"]["mean"] == pytest.approx(actions.mean(axis=0).tolist(), abs=1e-6)
        assert entry["stats"]["action"]["count"] == [len(actions)]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in images(table)]) / 255
        found = entry["stats"]["observation.images.overhead"]
        assert np.array(found["mean"]).shape == (3, 1, 1)
        assert np.array(found["mean"]).ravel() == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-9)
        assert np.array(found["std"]).ravel() == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-9)


def images(table) -> list[dict]:
    return table["observation.images.overhead"].to_pylist()


def test_row_k_is_what_was_seen_before_action_k():
    """Replayed without noise, the recorded actions lead through the recorded images to success."""
    (undisturbed,) = recordings("pick", noisy=0.0)
    environment = KinematicEnvironment("pick", **OPTIONS)
    episode = demonstrate(undisturbed, environment, FIRST + 2)
    assert episode is not None
    observation, step = environment.reset(FIRST + 2), None
    for number, action in enumerate(episode.actions):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(episode.images[number]))), observation["image"])
        assert np.array_equal(episode.states[number], observation["state"])
        step = environment.step(action)
        observation = step.observation
    assert step is not None
    assert step.success


def test_noise_moves_the_gripper_and_not_the_label():
    environment = KinematicEnvironment("pick", **OPTIONS)
    clean, noisy = (demonstrate(recordings("pick", noisy=share)[0], environment, FIRST) for share in (0.0, 1.0))
    assert clean is not None
    assert noisy is not None
    assert np.array_equal(clean.actions[0], noisy.actions[0])  # the same image, hence the same wish
    assert not np.allclose(clean.states[1], noisy.states[1], atol=1e-3)  # but the gripper came elsewhere
    again = demonstrate(recordings("pick", noisy=1.0)[0], environment, FIRST)
    assert again is not None
    assert np.array_equal(again.states, noisy.states)


def test_demonstrations_are_other_episodes_than_rollouts(written):
    first = parquet.read_table(written / "data/chunk-000/episode_000000.parquet")["observation.state"].to_pylist()[0]
    started = [KinematicEnvironment("reach", **OPTIONS).reset(number)["state"] for number in range(20)]
    assert not any(np.allclose(first, state, atol=1e-4) for state in started)


def test_success_lasts_for_as_long_as_asked_for():
    """Without the steps after success a policy would never see what to do there."""
    environment = KinematicEnvironment("pick", **OPTIONS)
    for hold in (1, 5):
        episode = demonstrate(recordings("pick", noisy=0.0, hold=hold)[0], environment, FIRST)
        environment.reset(FIRST)
        outcomes = [environment.step(action).success for action in episode.actions]
        assert outcomes == [False] * (len(outcomes) - hold) + [True] * hold


def test_mistakes_are_named(written, tmp_path):
    with pytest.raises(ConfigError, match="is not empty; demonstrations go into a new folder"):
        record(recordings("reach"), 1, written, 1, list)
    with pytest.raises(ConfigError, match=r"share of noisy steps: 1\.5"):
        record(recordings("reach", noisy=1.5), 1, tmp_path / "a", 1, list)
    with pytest.raises(
        ConfigError, match=r"sise: the environment kinematic has the options size, state\. Did you mean: 'size'"
    ):
        record([Recording("kinematic", "reach", {"sise": 3})], 1, tmp_path / "b", 1, list)
    writer = LeRobotWriter(tmp_path / "c", 3, (16, 16), ("x",), ("x",), "kinematic")
    environment = KinematicEnvironment("reach", **OPTIONS)
    episode = demonstrate(recordings("reach")[0], environment, FIRST)
    assert episode is not None
    with pytest.raises(DataError, match=r"observation.state \(\d+, 4\)"):
        writer.add(episode)


def test_an_expert_that_never_succeeds_makes_no_data_set(tmp_path, monkeypatch):
    def failing(self, action) -> Step:
        step = step_of(self, action)
        return step._replace(success=False)

    step_of = KinematicEnvironment.step
    monkeypatch.setattr(KinematicEnvironment, "step", failing)
    with pytest.raises(DataError, match="reach: the expert succeeded in none of 2 episodes"):
        record(recordings("reach"), 2, tmp_path / "set", 1, list)
    assert not (tmp_path / "set/meta/info.json").exists()


def test_the_command_says_what_it_has_written(tmp_path, capsys):
    arguments = ["demonstrations", "--env", "kinematic", "--task", "reach", "close_drawer", "--episodes", "2"]
    assert main([*arguments, "--out", str(tmp_path / "set"), "size=16"]) == 0
    assert "set: 2 of reach, 2 of close_drawer" in capsys.readouterr().out
    about = json.loads((tmp_path / "set/meta/selfflow.json").read_text())
    assert about["recordings"][1]["task"] == "close_drawer"
    assert main([*arguments, "--out", str(tmp_path / "other"), "16"]) == 2
    assert "'16': an option of the environment is written key=value" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path):
    def bytes_of(workers: int) -> dict[str, bytes]:
        folder = tmp_path / str(workers)
        record(recordings("reach", "pick"), 5, folder, workers, list)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert bytes_of(1) == bytes_of(2)
