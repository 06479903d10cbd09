"""Which steps a window shows, against tables written by hand, and through to records: nothing is off by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("crc32c", reason="TFRecords need crc32c (extra `robots`)")

from core.errors import ConfigError, DataError
from modalities.base import Deferred
from modalities.data.sources.selection import Selection
from modalities.episodes.base import Fields
from modalities.episodes.lerobot import LeRobotSet, usual_fields
from modalities.episodes.rlds import RldsSet
from modalities.episodes.source import EpisodesSource, Reading
from modalities.episodes.windows import WindowPlan, padded
from tests.modalities.episodes.making import counting, example, number_in, write_lerobot_3, write_rlds

FIELDS = Fields("observation/image", ("action/world", "action/gripper"), ("observation/state",), "language_instruction")
ALL = ("image", "video", "action_count", "state_count")


@pytest.mark.parametrize(
    ("plan", "frames", "actions", "windows_of_12"),
    [
        (WindowPlan(4, 3), [6, 7, 8, 9], [5, 6, 7], 11),
        (WindowPlan(4, 3, first_frame="current"), [5, 6, 7, 8], [5, 6, 7], 11),
        (WindowPlan(4, 3, stride=2), [7, 9, 11, 13], [5, 7, 9], 10),
        (WindowPlan(5, 3, stride=4, frames_per_action=4), [6, 7, 8, 9, 10], [5, 9, 13], 11),
        (WindowPlan(5, 3, stride=4, frames_per_action=2), [7, 9, 11, 13, 15], [5, 9, 13], 10),
        (WindowPlan(2, 6, actions_per_frame=3), [8, 11], [5, 6, 7, 8, 9, 10], 9),
        (WindowPlan(3, 4, actions_per_frame=2, first_frame="current"), [5, 7, 9], [5, 6, 7, 8], 11),
        (WindowPlan(2, 3, stride=2, actions_per_frame=2), [9, 13], [5, 7, 9], 8),
        # images shown several times: frame i is on screen at step 5 + (i + 1) / 4
        (WindowPlan(8, 2, frames_per_action=4), [5, 5, 5, 6, 6, 6, 6, 7], [5, 6], 11),
        (WindowPlan(8, 2, frames_per_action=4, first_frame="current"), [5, 5, 5, 5, 6, 6, 6, 6], [5, 6], 11),
    ],
)
def test_steps_of_a_window_that_begins_at_step_5(plan, frames, actions, windows_of_12):
    assert plan.problems() == []
    assert plan.frame_steps(5).tolist() == frames
    assert plan.action_steps(5).tolist() == actions
    assert plan.count(12) == windows_of_12


def test_rates_of_a_window():
    assert WindowPlan(49, 6).video_fps(3.0) == 3.0
    assert WindowPlan(49, 6, frames_per_action=8).video_fps(3.0) == 24.0
    assert WindowPlan(49, 6, stride=10).rate(30.0) == 3.0
    assert WindowPlan(2, 6, actions_per_frame=3).video_fps(3.0) == 1.0
    assert WindowPlan(49, 6, stride=8, frames_per_action=8).video_fps(30.0) == 30.0


def test_what_lies_beyond_the_end_is_the_last_step_and_is_no_step():
    steps, real = padded(np.array([3, 4, 5, 6]), 5)
    assert steps.tolist() == [3, 4, 4, 4]
    assert real.tolist() == [True, True, False, False]


def test_plans_that_make_no_sense():
    assert "frames: 0 must be at least 1" in WindowPlan(0, 6).problems()[0]
    assert "Did you mean: 'current'" in WindowPlan(9, 6, first_frame="curent").problems()[0]
    assert "one of them must be 1" in WindowPlan(4, 6, stride=2, frames_per_action=2, actions_per_frame=3).problems()[0]
    assert "one must be a multiple of the other" in WindowPlan(9, 6, stride=3, frames_per_action=2).problems()[0]


@pytest.fixture(params=["rlds", "lerobot"])
def episodes(request, tmp_path: Path):
    """Three episodes of 6, 9 and 4 steps: frame s of episode e holds 100 e + s, action s holds (s, e)."""
    lengths = [6, 9, 4]
    if request.param == "lerobot":
        folder = write_lerobot_3(tmp_path / "set", lengths)
        return LeRobotSet(folder, usual_fields(folder))
    rows = [example(e, steps) for e, steps in enumerate(lengths)]
    return RldsSet(write_rlds(tmp_path / "set", [rows]), FIELDS, 3.0, cache=tmp_path / "cache")


@pytest.mark.parametrize("first_frame", ["next", "current"])
def test_no_record_is_off_by_one(episodes, first_frame):
    """The action of a step is the one that was taken at the image of that step, and leads to the next one."""
    source = EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3, first_frame=first_frame)))
    assert len(source) == 5 + 8 + 3
    begins = []
    for index in range(len(source)):
        record = source.read(index)
        image, video, action, state = (record.part(name) for name in ("image", "video", "action", "state"))
        start = number_in(image.readable())
        begins.append(start)
        episode, step = divmod(start, 100)
        last = int(episodes.steps[episode]) - 1
        assert isinstance(action.media, np.ndarray)
        assert isinstance(state.media, np.ndarray)
        wanted = step + np.arange(3)
        assert action.media[:, 0].tolist() == np.minimum(wanted, last).tolist()
        assert action.media[:, 1].tolist() == [episode] * 3
        assert action.valid is not None
        assert action.valid.tolist() == (wanted <= last).tolist()
        assert state.media.tolist() == [[step, step**2]]
        shown = step + np.arange(5) + (first_frame == "next")
        frames = video.readable()
        assert isinstance(frames, np.ndarray)
        assert [number_in(frame) - 100 * episode for frame in frames] == np.minimum(shown, last).tolist()
        assert video.valid is not None
        assert video.valid.tolist() == (shown <= last).tolist()
        assert video.valid[0]
        assert video.rate == episodes.fps
        assert record.part("action_count").media is action.media
    assert begins == [100 * e + s for e, steps in enumerate(episodes.steps) for s in range(steps - 1)]
    assert len({source.read(index).key for index in range(len(source))}) == len(source)


def test_images_are_decoded_when_they_are_asked_for(episodes):
    source = EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3)))
    video = source.read(0).part("video").media
    assert isinstance(video, Deferred)
    assert video.bytes > 0
    assert set(EpisodesSource(episodes, ("action",), Reading(WindowPlan(5, 3))).read(0).parts) == {"action"}


def rlds(tmp_path: Path, *rows: bytes) -> RldsSet:
    return RldsSet(write_rlds(tmp_path / "set", [rows]), FIELDS, 3.0, cache=tmp_path / "cache")


def test_an_episode_of_one_step_is_left_out_and_counted(tmp_path):
    source = EpisodesSource(rlds(tmp_path, example(0, 1), example(1, 2), example(2, 3)), ALL, Reading(WindowPlan(5, 3)))
    assert len(source) == 1 + 2
    assert source.account().lines() == ["left out: 1 episode too short for a window"]
    with pytest.raises(ConfigError, match="none of 1 episodes has the steps of one window"):
        EpisodesSource(rlds(tmp_path / "alone", example(0, 1)), ALL, Reading(WindowPlan(5, 3)))


def test_a_window_with_an_action_that_is_not_finite_is_refused_and_others_are_not(tmp_path):
    actions = counting(0, 9)
    actions[4, 1] = np.nan
    source = EpisodesSource(rlds(tmp_path, example(0, 9, actions)), ALL, Reading(WindowPlan(5, 3)))
    for start in range(8):
        if start <= 4 <= start + 2:
            with pytest.raises(DataError, match=rf"step {start}: action {4 - start} of the window has NaN .*numbers 1"):
                source.read(start)
        else:
            source.read(start)


def test_an_episode_without_an_instruction(tmp_path):
    episodes = rlds(tmp_path, example(0, 3, text=" "), example(1, 3))
    skipping = EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3)))
    with pytest.raises(DataError, match=r"no instruction; `no_instruction: null` takes the null condition"):
        skipping.read(0)
    assert skipping.read(2).captions == ("pick it up",)
    record = EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3), no_instruction="null")).read(0)
    assert (record.captions, record.unconditional) == ((), True)
    record = EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3), instruction="go")).read(0)
    assert (record.captions, record.unconditional) == (("go",), False)


def test_all_windows_of_an_episode_lie_on_one_side_of_a_hold_out(tmp_path):
    episodes = rlds(tmp_path, *(example(e, 3) for e in range(20)))
    sides = {
        split: EpisodesSource(episodes, ALL, Reading(WindowPlan(5, 3)), Selection({}, split, 0.3))
        for split in ("train", "test")
    }
    seen = {split: {source.place(i)[0] for i in range(len(source))} for split, source in sides.items()}
    assert seen["train"] | seen["test"] == set(range(20))
    assert not seen["train"] & seen["test"]
    assert sides["train"].fingerprint() != sides["test"].fingerprint()


def test_parts_that_robot_data_have_not(tmp_path):
    with pytest.raises(ConfigError, match="parts of the modalities image, video, action, state, and none of audio"):
        EpisodesSource(rlds(tmp_path, example(0, 3)), ("image", "audio"), Reading(WindowPlan(5, 3)))
