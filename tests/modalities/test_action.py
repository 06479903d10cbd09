"""Actions and states: one token each, at their time and beside the image, normalized by the statistics of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError
from modalities.action import ActionConfig, StateConfig
from modalities.base import Media, Record
from modalities.streams import make_parts, make_segments, token_mask
from modalities.table import family_of, modality
from modalities.video import VideoAdapter, VideoConfig

GENERATOR = torch.Generator()


def action(name: str = "action_rt1", **settings):
    row = modality(name)
    return row.adapter(row.settings(**settings))


def statistics(path: Path, width: int) -> str:
    values = {name: [float(place) for place in range(width)] for name in ("q01", "min", "mean")}
    values |= {name: [place + 2.0 for place in range(width)] for name in ("q99", "max", "std")}
    path.write_text(json.dumps({"action": values, "state": values}))
    return str(path)


def record(values: object, valid: object = None) -> Record:
    media = Media(values, valid=None if valid is None else np.array(valid))  # pyright: ignore[reportArgumentType]
    return Record("k", "robot 3", b"", parts={"action": media})


def test_every_robot_has_a_modality_of_its_own():
    for name in ("action", "action_rt1", "action_g1"):
        assert action(name).modality == name
    assert action("state_g1", width=26).modality == "state_g1"
    assert [family_of(name) for name in ("action_rt1", "action", "action_", "actions", "image", "image_2")] == [
        *("action", "action"),
        *(None, None, None, None),
    ]
    with pytest.raises(ConfigError, match=r"action \(or action_ROBOT\).* Did you mean: 'action'"):
        modality("actoin")


def test_tokens_lie_on_the_time_of_the_video_and_off_its_image():
    """Six actions of a robot at 3 Hz beside a video of 24 frames a second: an action spans 8 frames."""
    video = VideoAdapter(VideoConfig([8], frames=49, fps=24, patch=4, patch_frames=4))
    found = make_parts({"image": video, "action": action(), "state": action("state", width=8)}, per_second=24.0)
    ids = found["action"].ids
    assert ids[:, 0].tolist() == [4, 12, 20, 28, 36, 44]  # the middle of 0..8, 8..16, ...
    assert (ids[:, 1:] == -1).all()
    assert found["state"].ids.tolist() == [[0, -2, -2]]
    assert found["image"].ids[:, 1:].min() == 0


def test_values_come_back_as_they_are():
    adapter, values = action(width=3, actions=2), np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    media = adapter.load(record(values).part("action"), GENERATOR)
    assert media.tolist() == values.tolist()
    assert adapter.grid() == (2, 1, 1)
    assert torch.equal(adapter.decode(adapter.encode(media[None]))[0], media)


def test_a_file_of_actions(tmp_path):
    adapter, values = action(width=3, actions=2, rotation="rpy"), torch.tensor([[1.0, 2, 3], [4, 5, 6.5]])
    path = adapter.write(values, tmp_path / "deep" / "plan")
    assert json.loads(path.read_text()) == {
        "modality": "action_rt1",
        "rate": 3.0,
        "rotation": "rpy",
        "actions": values.tolist(),
    }
    assert torch.equal(adapter.load(Record("k", "o", path), GENERATOR), values)
    assert torch.equal(adapter.load(Record("k", "o", json.dumps(values.tolist()).encode()), GENERATOR), values)
    known = adapter.known_from({"actions": Record("k", "o", path)}, lambda: GENERATOR)
    assert known.conditioning_mask.all()
    for text, message in (
        ('{"states": []}', "has no actions, but states"),
        ("[[1], [2, 3]]", "no list of actions"),
        ("nothing", "no list of actions"),
        ("[[1, 2, 3]]", r"actions of shape \(1, 3\), expected \(2, 3\)"),
    ):
        with pytest.raises(DataError, match=message):
            adapter.load(Record("k", "o", text.encode()), GENERATOR)


def test_another_width_is_a_wrong_setting_and_no_bad_record():
    with pytest.raises(ConfigError, match=r"media.width: 3, and the action of robot 3 has 4 numbers"):
        action(width=3, actions=2).load(record(np.zeros((2, 4), np.float32)).part("action"), GENERATOR)


def test_statistics_are_needed_and_those_of_another_robot_refused(tmp_path):
    path = statistics(tmp_path / "s.json", 3)
    with pytest.raises(ConfigError, match=r"statistics: empty, and the actions are .*`selfflow stats`"):
        _ = action(width=3).normalization
    with pytest.raises(ConfigError, match=r"is of 3 numbers, and media.width is 7: those of another robot"):
        _ = action(statistics=path).normalization
    normalization = action(width=3, statistics=path, keep=[2]).normalization
    assert normalization.normalize(torch.tensor([[0.0, 3.0, 7.0], [9.0, 2.0, 8.0]])).tolist() == [[-1, 1, 7], [1, 0, 8]]
    assert action("state", width=3, statistics=path).normalization.digest == normalization.digest


def test_settings_that_make_no_sense():
    assert ActionConfig(width=0, keep=[7]).problems() == [
        "width: 0 must be at least 1",
        "keep: 7: places of 0 numbers count from 0",
    ]
    assert "Did you mean: 'quantiles'" in StateConfig(normalize="quantile").problems()[0]
    assert "rotation: 'quat' is not one of none, rpy, axis_angle." in ActionConfig(rotation="quat").problems()[0]
    assert "actions: 0 must be at least 1" in ActionConfig(actions=0).problems()
    assert "rate: 0 must be above 0 actions a second" in ActionConfig(rate=0).problems()


def test_masks_of_frames_become_masks_of_tokens():
    """A token of several frames is padding only if all of them are."""
    video = VideoAdapter(VideoConfig([8], frames=9, fps=3, patch=4, patch_frames=4))  # frame 0, 1-4, 5-8; 4 places
    rows = {real: video.valid_tokens(np.arange(9) < real).tolist() for real in (0, 1, 2, 5, 6, 9)}
    t, f = [True] * 4, [False] * 4
    assert rows == {0: f + f + f, 1: t + f + f, 2: t + t + f, 5: t + t + f, 6: t + t + t, 9: t + t + t}
    together = VideoAdapter(VideoConfig([4], frames=8, fps=3, patch=4, patch_frames=4, first_frame_alone=False))
    assert together.valid_tokens(np.arange(8) < 3).tolist() == [True, False]
    with pytest.raises(DataError, match=r"a mask of shape \(8,\) for what has 9 steps in time"):
        video.valid_tokens(np.ones(8, dtype=bool))


def test_a_missing_mask_is_refused_where_padding_may_be():
    (part,) = make_parts({"action": action(width=3, actions=2)}, pads={"action": True}).values()
    values = np.zeros((2, 3), np.float32)
    mask = token_mask("action", part, record(values, [True, False]))
    assert mask is not None
    assert mask.tolist() == [True, False]
    with pytest.raises(DataError, match="robot 3: action: no mask says what of it is padding"):
        token_mask("action", part, record(values))
    with pytest.raises(DataError, match=r"robot 3: action: a mask of shape \(3,\)"):
        token_mask("action", part, record(values, [True] * 3))
    segment = make_segments({"action": part}, [torch.zeros(1, 2, 3)], valid={"action": mask[None]})[0]
    assert segment.loss_mask().tolist() == [[True, False]]
