"""LeRobot trees of both formats: every frame carries its number, whatever the clock of the video says."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from core.errors import ConfigError, DataError
from modalities.episodes.lerobot import LeRobotSet, named, usual_fields
from tests.modalities.episodes.making import CAMERA, counting, number_in, write_lerobot_2, write_lerobot_3

LENGTHS = [6, 9, 4]


def opened(folder: Path) -> LeRobotSet:
    return LeRobotSet(folder, usual_fields(folder))


def numbers(found: LeRobotSet, episode: int) -> list[int]:
    read = found.read(episode)
    return [number_in(frame) for frame in read.frames(range(read.steps))]


def check(folder: Path) -> LeRobotSet:
    """Every step of every episode has its own frame, action and state."""
    found = opened(folder)
    assert found.steps.tolist() == LENGTHS
    for episode, steps in enumerate(LENGTHS):
        read = found.read(episode)
        np.testing.assert_array_equal(read.actions, counting(episode, steps))
        assert read.states is not None
        assert read.states[:, 0].tolist() == list(range(steps))
        assert read.instruction == "count"
        assert numbers(found, episode) == [episode * 100 + step for step in range(steps)]
        assert [number_in(frame) for frame in read.frames([3, 1, 3])] == [episode * 100 + step for step in (3, 1, 3)]
    return found


def test_format_2(tmp_path):
    found = check(write_lerobot_2(tmp_path / "set", LENGTHS))
    assert (found.fps, found.files, found.key(1)) == (30, None, "episode_000001")
    lines = "\n".join(found.describe())
    assert "LeRobot v2.1, robot counter, 30 fps, 1 tasks" in lines
    assert "observation.state: float32 2 (a, b)" in lines
    assert "action: float32 3\n" in lines  # its names are null


def test_format_3(tmp_path):
    found = check(write_lerobot_3(tmp_path / "set", LENGTHS))
    assert found.files is not None
    assert len(set(found.files)) == 1


def test_frames_are_counted_and_not_looked_up_by_rounded_times(tmp_path):
    """A video of 25 frames a second, with stamps up to 15 ms off, under meta/ that says 30."""
    rng = np.random.default_rng(0)
    late = rng.integers(-15, 16, sum(LENGTHS)).tolist()
    late[0] = 0
    check(write_lerobot_3(tmp_path / "three", LENGTHS, Fraction(25), late.__getitem__))
    check(write_lerobot_3(tmp_path / "ntsc", LENGTHS, Fraction(30_000, 1001), late.__getitem__))
    check(write_lerobot_2(tmp_path / "two", LENGTHS, Fraction(25)))


def test_frames_of_no_episode(tmp_path):
    """Then the spans of meta/ say where an episode lies, where they enclose as many frames as it has."""
    check(write_lerobot_3(tmp_path / "set", LENGTHS, extra=5))
    drifted = write_lerobot_3(tmp_path / "drifted", LENGTHS, Fraction(25), extra=5)
    with pytest.raises(DataError, match="the video has 24 frames, and its episodes 19 steps"):
        numbers(opened(drifted), 2)


def test_a_video_of_another_length_than_its_episode(tmp_path):
    folder = write_lerobot_2(tmp_path / "set", LENGTHS)
    videos = folder / f"videos/chunk-000/{CAMERA}"
    (videos / "episode_000001.mp4").write_bytes((videos / "episode_000000.mp4").read_bytes())
    with pytest.raises(DataError, match="episode 1: the video has 6 frames, and the episode 9 steps"):
        numbers(opened(folder), 1)


def test_rows_that_are_not_those_of_the_episode(tmp_path):
    folder = write_lerobot_2(tmp_path / "set", LENGTHS)
    data = folder / "data/chunk-000"
    (data / "episode_000001.parquet").write_bytes((data / "episode_000000.parquet").read_bytes())
    with pytest.raises(DataError, match="episode 1: its 9 rows are not where meta/ says, or not in order"):
        opened(folder).read(1)
    (data / "episode_000001.parquet").write_bytes(b"PAR1nonsensePAR1")
    with pytest.raises(DataError, match="not a Parquet file, or damaged"):
        opened(folder).read(1)


def test_images_in_the_parquet_files(tmp_path):
    from tests.modalities.episodes.making import jpeg, numbered_frame

    folder = write_lerobot_2(tmp_path / "set", LENGTHS)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][CAMERA]["dtype"] = "image"
    (folder / "meta/info.json").write_text(json.dumps(info))
    for episode, steps in enumerate(LENGTHS):
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        images = [{"bytes": jpeg(numbered_frame(episode * 100 + step)), "path": ""} for step in range(steps)]
        parquet.write_table(parquet.read_table(path).append_column(CAMERA, pa.array(images)), path)
    check(folder)


def test_what_a_set_does_not_have(tmp_path):
    folder = write_lerobot_2(tmp_path / "set", LENGTHS)
    with pytest.raises(ConfigError, match=r"image_key: 'front' is not in"):
        LeRobotSet(folder, usual_fields(folder, "front"))
    with pytest.raises(ConfigError, match=r"subset: 'test' is not in .* it has train"):
        LeRobotSet(folder, usual_fields(folder), "test")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.side"] = info["features"][CAMERA]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match=r"image_key: empty, and .* has 2 cameras; name one: "):
        usual_fields(folder)
    (folder / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(ConfigError, match=r"has the format v1.6; v2 and v3 are read"):
        usual_fields(folder)
    with pytest.raises(ConfigError, match=r"a LeRobot data set has meta/, data/ and videos/"):
        usual_fields(tmp_path)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (None, ""),
        ([], ""),
        (["x", "y"], " (x, y)"),
        ([["x", "y"]], " (x, y)"),
        ({"motors": ["x", "y"]}, " (x, y)"),
        ({"x": 0, "y": 1}, " (0, 1)"),
        ([str(place) for place in range(9)], " (0, 1, 2, 3, 4, 5, 6, 7, ...)"),
    ],
)
def test_names_come_in_many_forms_and_may_be_missing(names, shown):
    assert named(names) == shown
