"""Streams with free names and parts: what their settings mean, and every refusal, by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from configs.assembly import Assembly
from configs.build import build_trainer
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from core.training.config import from_plain, load, to_plain, to_yaml
from core.training.records import read_lines

TRUNK = "trunk: {mmdit: {size: tiny, width: 96, heads: 2, double_blocks: 1, single_blocks: 1, mlp_ratio: 1.0}}\n"
TRAINING = "training: {steps: 8, device: cpu}\nmethod: flow_matching\nrun: run\n"
SIZES = (
    "streams:\n"
    "  small: {modality: image, batch: 2, data: {size: 8, count: 20}, media: {size: [8], patch: 4}}\n"
    "  large: {modality: image, batch: 1, data: {size: 16, count: 20}, media: {size: [16], patch: 4}}\n"
)
CLIPS = (
    "streams:\n"
    "  clips:\n"
    "    batch: 2\n"
    "    data: {frames: 3, count: 20}\n"
    "    parts:\n"
    "      video: {media: {size: [8], frames: 3, patch: 4, patch_frames: 1}}\n"
    "      sound: {modality: audio, media: {seconds: 0.3, hop: 64}}\n"
)


def read(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "run.yaml").write_text(text + TRUNK + TRAINING)
    return load_config(folder / "run.yaml", list(overrides))


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """Without the places of the lines."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    return [re.sub(r"^(run\.yaml(:\d+)?|command line '[^']*'): ", "", line) for line in caught.value.problems]


def test_two_streams_of_one_modality_share_layers_and_statistics_and_both_train(tmp_path):
    config = read(tmp_path, SIZES, f"run={tmp_path / 'run'}")
    trainer = build_trainer(config, tmp_path)
    assert [name for name in trainer.student.state_dict() if name.startswith("media_in.")] == [
        "media_in.image.weight",
        "media_in.image.bias",
    ]
    assert list(trainer.extra["normalization"]) == ["image"]
    streams = trainer.loader.dataset.streams
    assert {name: len(stream.parts["image"].ids) for name, stream in streams.items()} == {"small": 4, "large": 16}
    assert trainer.fit() == "finished"
    assert {entry["stream"] for entry in read_lines(tmp_path / "run" / "metrics.jsonl")} == {"small", "large"}


def test_the_statistics_of_a_modality_are_those_of_the_first_part_that_has_it(tmp_path):
    both = Assembly(read(tmp_path, SIZES), tmp_path).normalization
    small = Assembly(read(tmp_path, SIZES, "streams.large=null"), tmp_path).normalization
    assert list(both) == ["image"]
    assert torch.equal(both["image"].mean, small["image"].mean)
    assert torch.equal(both["image"].std, small["image"].std)


def test_tokens_of_other_channels_are_refused_by_name(tmp_path):
    config = read(tmp_path, SIZES, "streams.large.media.patch=8")
    with pytest.raises(ConfigError) as caught:
        build_trainer(config, tmp_path)
    assert str(caught.value) == (
        "streams.large.media: makes tokens of 192 channels, and streams.small.media tokens of 48; all parts of a "
        "modality share its input and output layers"
    )
    assert not (tmp_path / "run").exists()
    (line,) = problems(tmp_path, SIZES, "streams.large.media={patch: null, autoencoder: {kind: sd_vae, path: x}}")
    assert "streams.large: its image has the autoencoder 'sd_vae', and small.image has 'pixels'" in line
    (line,) = problems(tmp_path, SIZES, "streams.large.std_floor=0.1")
    assert line == "streams.large: std_floor 0.1 of image is 0.01 in small.image"


def test_parts_have_the_media_settings_of_their_modality(tmp_path):
    config = read(tmp_path, CLIPS)
    parts = config.streams["clips"].named_parts("clips")
    assert {name: part.modality for name, part in parts.items()} == {"video": "video", "sound": "audio"}
    assert (parts["video"].media.frames, parts["sound"].media.hop) == (3, 64)
    assert [entry[:2] for entry in config.parts()] == [("clips", "video"), ("clips", "sound")]
    assert from_plain(Config, to_plain(config)) == config
    (tmp_path / "printed.yaml").write_text(to_yaml(config))
    assert load(Config, tmp_path / "printed.yaml") == config
    # Of a stream of one part alone there are usual values: those of its modality.
    flat = read(tmp_path, "streams: {voice: {modality: audio}, image: {}}\n").streams
    assert [(entry.weight, entry.batch, entry.mask_ratio) for entry in flat.values()] == [
        (0.13, 16, 0.5),
        (0.57, 38, 0.25),
    ]
    clips = config.streams["clips"]
    assert (clips.weight, clips.mask_ratio) == (1, 0.25)


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ("media: {size: [8]}", "streams.clips.media: belongs to each of the parts, parts.NAME.media"),
        ("modality: video", "streams.clips.modality: belongs to each of the parts, parts.NAME.modality"),
        ("std_floor: 0.2", "streams.clips.std_floor: belongs to each of the parts, parts.NAME.std_floor"),
        ("positions_per_second: 0", "streams.clips.positions_per_second: 0.0 must be above 0"),
        ("condition_on: {vidoe: 0.5}", "is not one of none, first_frame, video, audio. Did you mean: 'video'?"),
        ("condition_on: {video: 0.5, audio: 0.6}", "condition_on: sums to 1.1; must be 1, or less without none"),
        ("condition_on: {none: 0.5, video: 0.2}", "condition_on: sums to 0.7; must be 1, or less without none"),
        ("condition_on: {video: -0.1}", "streams.clips.condition_on.video: -0.1 must lie in [0, 1]"),
        ("condition_on: {video: much}", "streams.clips.condition_on: expected dict[str, float], got {'video': 'much'}"),
        ("condition_noise: 1.5", "streams.clips.condition_noise: 1.5 must lie in [0, 1]"),
    ],
)
def test_settings_of_parts_that_are_refused(clips, expected, tmp_path):
    found = problems(tmp_path, f"streams: {{clips: {{parts: {{video: {{}}, audio: {{}}}}, {clips}}}}}\n")
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("{video: {}, sound: {}}", "streams.clips.parts.sound.modality: 'sound' is not one of image, video, audio,"),
        ("{sound: {modality: audoi}}", "streams.clips.parts.sound.modality: 'audoi' is not one of image, video, aud"),
        ("{video: {}, none: {modality: audio}}", "streams.clips.parts.none: has a meaning in condition_on"),
        ("{video: {}, a-b: {modality: audio}}", "streams.clips.parts.a-b: the name must be a plain one"),
        ("{video: {loss_weight: 0}}", "streams.clips.parts.video.loss_weight: 0.0 must be above 0"),
        ("{video: {std_floor: 2}}", "streams.clips.parts.video.std_floor: 2.0 must lie in (0, 1]"),
        ("{video: {media: {hop: 3}}}", "streams.clips.parts.video.media.hop: unknown key; allowed: size, frames"),
        ("{video: {}, clips: {modality: audio, medai: {}}}", "parts.clips.medai: unknown key; allowed: modality, "),
    ],
)
def test_parts_that_are_refused(parts, expected, tmp_path):
    found = problems(tmp_path, f"streams: {{clips: {{parts: {parts}}}}}\n")
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        (
            "{imgae: {}}",
            "streams.imgae.modality: 'imgae' is not one of image, video, audio, "
            "action (or action_ROBOT), state (or state_ROBOT). Did you mean: 'image'? A stream or "
            "part of another name says which modality it has",
        ),
        (
            "{a: {modality: vidoe}}",
            "streams.a.modality: 'vidoe' is not one of image, video, audio, action (or action_ROBOT), state (or "
            "state_ROBOT). Did you mean: 'video'?",
        ),
        ("{a-b: {modality: image}}", "streams.a-b: the name must be a plain one (letters, digits, underscore)"),
        ("{image: {positions_per_second: 4}}", "streams.image.positions_per_second: is read for several `parts` alone"),
        ("{image: {condition_on: {image: 0.5}}}", "streams.image.condition_on.image: is not one of none, first_frame."),
        ("{image: 3}", "streams.image: expected a section with some of weight, batch"),
        ("{image: null}", "streams: empty; name at least one, such as streams.image"),
    ],
)
def test_streams_that_are_refused(streams, expected, tmp_path):
    found = problems(tmp_path, f"streams: {streams}\n")
    assert any(expected in line for line in found), found


def test_times_per_part_need_parts(tmp_path):
    per_part = "noising.timesteps=per_part"
    (line,) = problems(tmp_path, SIZES, per_part)
    assert line == "noising.timesteps: 'per_part' is read for streams of several parts alone, and there is none"
    assert read(tmp_path, CLIPS, per_part).noising.timesteps == "per_part"


def test_a_first_frame_needs_a_video(tmp_path):
    config = read(tmp_path, SIZES, "streams.small.condition_on={first_frame: 0.5}")
    with pytest.raises(
        ConfigError, match=r"^streams\.small\.condition_on\.first_frame: the stream has no video, but i"
    ):
        build_trainer(config, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_stream_that_is_set_to_null_is_left_out(tmp_path):
    assert list(read(tmp_path, SIZES, "streams.small=null").streams) == ["large"]
    (tmp_path / "base.yaml").write_text(SIZES)
    (tmp_path / "other.yaml").write_text("base: base.yaml\nstreams: {large: null, video: {}}\n")
    config = load_config(tmp_path / "other.yaml", [])
    assert list(config.streams) == ["small", "video"]
    assert "large" not in to_yaml(config)


def test_streams_and_parts_keep_the_order_in_which_they_are_written(tmp_path):
    for first, second in (("video", "audio"), ("audio", "video")):
        config = read(tmp_path, f"streams: {{z: {{parts: {{{first}: {{}}, {second}: {{}}}}}}, image: {{}}}}\n")
        assert list(config.streams) == ["z", "image"]
        assert list(config.streams["z"].parts) == [first, second]
        back = from_plain(Config, to_plain(config))
        assert (list(back.streams), list(back.streams["z"].parts)) == (["z", "image"], [first, second])
