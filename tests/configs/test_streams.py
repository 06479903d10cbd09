"""Streams with free names and parts: what their settings mean, and every refusal, by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from configs.assembly import Assembly
from configs.build import build_trainer
from configs.load import load_config
from configs.runs import load_run
from configs.schema import Config
from core.errors import ConfigError
from core.evaluation.velocity import velocity_loss_curve
from core.sampling.parts import PartSampling
from core.training.config import from_plain, load, to_plain, to_yaml
from core.training.records import read_lines
from modalities.evaluation.records import Reader

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
        (
            "modes: {vidoe_given: 0.5}",
            "modes.vidoe_given: is not one of shared, first_frame, independent, video_given, video_absent, "
            "audio_given, audio_absent, video_leads_audio, audio_leads_video. Did you mean: 'video_given'?",
        ),
        ("modes: {video_given: 0.5, independent: 0.6}", "modes: sums to 1.1; must be 1, or less without shared"),
        ("modes: {shared: 0.5, video_absent: 0.2}", "modes: sums to 0.7; must be 1, or less without shared"),
        ("modes: {video_given: -0.1}", "streams.clips.modes.video_given: -0.1 must lie in [0, 1]"),
        ("modes: {video_given: much}", "streams.clips.modes: expected dict[str, float], got {'video_given': 'much'}"),
        ("sampling: {parts: {vidio: {steps: 3}}}", "streams.clips.sampling.parts.vidio: is not one of video, audio."),
        ("sampling: {parts: {video: {stop_at: 1}}}", "streams.clips.sampling.parts.video.stop_at: 1.0 must lie in"),
        ("sampling: {parts: {video: {stopat: 1}}}", "streams.clips.sampling.parts.video.stopat: unknown key"),
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
        (
            "{video: {condition_noise: 2}, audio: {}}",
            "streams.clips.parts.video.condition_noise: 2.0 must lie in [0, 1]",
        ),
        (
            "{video: {}, audio: {timestep: {shift: 0.05}}}",
            "streams.clips.parts.audio.timestep: is read in modes that draw its levels alone, not in shared",
        ),
        ("{video: {}, a-b: {modality: audio}}", "streams.clips.parts.a-b: the name must be a plain one"),
        ("{video: {loss_weight: 0}}", "streams.clips.parts.video.loss_weight: 0.0 must be above 0"),
        ("{video: {std_floor: 2}}", "streams.clips.parts.video.std_floor: 2.0 must lie in (0, 1]"),
        (
            "{video: {media: {hop: 3}}}",
            "streams.clips.parts.video.media.hop: unknown key; allowed: size, frames",
        ),
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
        ("{image: {modes: {image_given: 0.5}}}", "streams.image.modes.image_given: is not one of shared, first_frame."),
        ("{image: 3}", "streams.image: expected a section with some of weight, batch"),
        ("{image: null}", "streams: empty; name at least one, such as streams.image"),
    ],
)
def test_streams_that_are_refused(streams, expected, tmp_path):
    found = problems(tmp_path, f"streams: {streams}\n")
    assert any(expected in line for line in found), found


def test_a_run_that_was_written_with_the_old_settings_is_told_the_new_ones(tmp_path):
    (line,) = problems(tmp_path, SIZES, "streams.small.condition_on={first_frame: 0.5}")
    assert " Did you mean: 'modes'?" in line


def test_a_first_frame_needs_a_video(tmp_path):
    config = read(tmp_path, SIZES, "streams.small.modes={first_frame: 0.5}")
    with pytest.raises(ConfigError, match=r"^streams\.small\.modes\.first_frame: the stream has no video, but i"):
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


AUDIOVISUAL = (
    "streams:\n"
    "  clips:\n"
    "    batch: 2\n"
    "    data: {size: 12, frames: 5, count: 30}\n"
    "    parts:\n"
    "      video: {media: {size: [12, 12], frames: 5, patch: 4}}\n"
    "      audio: {std_floor: 0.25, media: {seconds: 0.625, hop: 64}}\n"
)
DEEPER = "trunk.mmdit.single_blocks=2"
MODES = (
    "streams.clips.modes={independent: 0.2, video_given: 0.2, audio_absent: 0.2, audio_leads_video: 0.2}",
    "streams.clips.parts.video.condition_noise=0.05",
    "streams.clips.parts.audio.timestep={low: 0.9}",
)


def test_samples_are_trained_in_the_modes_of_their_stream(tmp_path):
    config = read(tmp_path, AUDIOVISUAL, *MODES, DEEPER, f"run={tmp_path / 'run'}", "method=self_flow")
    dataset = Assembly(config, tmp_path).dataset
    video, audio = (len(part.ids) for part in dataset.streams["clips"].parts.values())
    seen: dict[str, list[torch.Tensor]] = {"given": [], "absent": [], "rest": []}
    for item in range(30):
        batch = dataset[item]
        levels, held = batch.student.per_token(video + audio), batch.conditioning_mask
        assert batch.student.values.shape == (2, 4)
        assert batch.counts == {"video": float((~held[:, :video]).sum()), "audio": float((~held[:, video:]).sum())}
        cleaner = batch.teacher.per_token(video + audio)
        assert torch.equal(levels[held], cleaner[held])
        assert (cleaner <= levels).all()
        for row, mask in zip(levels, held, strict=True):
            if mask[:video].all():
                assert row[:video].max() <= 0.05
                assert row[video:].min() >= 0.9  # drawn alone, from a distribution of its own
                seen["given"].append(row)
            elif mask[video:].all():
                assert (row[video:] == 1).all()
                seen["absent"].append(row)
            else:
                assert not mask.any()
                seen["rest"].append(row)
    assert [len(rows) for rows in seen.values()] == pytest.approx([12, 12, 36], abs=8)
    assert build_trainer(config, tmp_path).fit() == "finished"


def test_a_part_that_is_given_in_every_sample(tmp_path):
    given = ("streams.clips.parts.video.given=true", "streams.clips.modes={audio_absent: 0}")
    config = read(tmp_path, AUDIOVISUAL, *given, DEEPER, f"run={tmp_path / 'run'}", "method=self_flow")
    assert build_trainer(config, tmp_path).fit() == "finished"
    entries = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert all("flow/audio" in entry and "flow/video" not in entry for entry in entries)
    loaded = load_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^video: is given in every sample of the training \(parts\.video\.given\)"):
        loaded.generate("clips", ["a red circle"])
    (only,) = loaded.generate("clips", ["a red circle"], steps=2, parts={"video": PartSampling(omit=True)})
    assert list(only) == ["audio"]
    reader = Reader(loaded.generator, "clips", loaded.assembly.sources["clips"], [], seed=0)
    (batch,) = reader.batches(2, 2)
    assert [bool(segment.loss_mask().any()) for segment in batch.segments] == [False, True]
    assert list(velocity_loss_curve(loaded.generator.trunk, [batch], [0.5], seed=0).losses) == ["audio"]
    (line,) = problems(tmp_path, AUDIOVISUAL, *given, "method=self_flow_as")
    assert line.startswith("streams.clips.modes: tokens of video would belong to no group")


def test_every_part_given_or_absent_leaves_nothing(tmp_path):
    both = ("streams.clips.parts.video.given=true", "streams.clips.parts.audio.given=true")
    with pytest.raises(ConfigError, match=r"^streams\.clips\.modes\.shared: every token of a sample is given"):
        Assembly(read(tmp_path, AUDIOVISUAL, *both), tmp_path).streams  # noqa: B018
    own = (both[0], "streams.clips.modes={audio_absent: 0.5}")
    with pytest.raises(ConfigError, match=r"^streams\.clips\.modes\.audio_absent: every token"):
        Assembly(read(tmp_path, AUDIOVISUAL, *own), tmp_path).streams  # noqa: B018


def test_tokens_of_a_part_that_the_trunk_cannot_carry_are_refused(tmp_path):
    config = read(tmp_path, AUDIOVISUAL, "streams.clips.parts.video.media.patch=6")
    with pytest.raises(ConfigError, match=r"^channels\.video: 216 are more than the trunk's width, 96; it could"):
        build_trainer(config, tmp_path)
