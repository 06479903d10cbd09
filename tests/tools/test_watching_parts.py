"""A tiny run on videos with their audio: its previews, its validation, and what selfflow evaluate measures of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.training.records import read_lines
from tests.tools.tiny import train
from tools.cli import main

pytest.importorskip("av", reason="MP4 files need PyAV")

CONFIG = """
seed: 3
streams:
  clips:
    batch: 2
    data: {size: 12, frames: 5, count: 30}
    val: {size: 12, frames: 5, count: 16, seed: 1}
    parts:
      video: {media: {size: [12, 12], frames: 5, patch: 4}}
      audio: {std_floor: 0.25, media: {seconds: 0.625, hop: 64}}
    modes: {independent: 0.4, video_given: 0.3, audio_given: 0.3}
    sampling: {steps: 2}
    evaluation:
      {measures: [velocity, knn, health, samples], val: 8, training: 24, generated: 8, batch: 4, timesteps: [0.3, 0.8],
       classifier_steps: 3}
condition:
  text: {vocabulary: 64, max_words: 6, rows_per_word: 4}
trunk:
  mmdit: {size: tiny, width: 96, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}
training:
  steps: 4
  save_every: 4
  device: cpu
  ema: {decay: 0.5}
  preview: {every: 4, samples: 2}
  validate: {every: 4, records: 8}
logging: {tensorboard: true}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "videos.yaml").write_text(CONFIG)
    assert train(folder / "run", config=folder / "videos.yaml") == 0
    return folder / "run"


def test_a_preview_is_one_file_with_image_and_audio(run):
    import av

    folder = run / "samples" / "step-00000004"
    index = json.loads((folder / "index.json").read_text())
    assert index["failed"] == {}
    assert [(entry["file"], entry["stream"], entry["index"]) for entry in index["samples"]] == [
        ("clips-000.mp4", "clips", 0),
        ("clips-001.mp4", "clips", 1),
    ]
    assert {path.name for path in folder.iterdir()} == {"index.json", "clips-000.mp4", "clips-001.mp4"}
    with av.open(str(folder / "clips-000.mp4")) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}


def test_the_trackers_get_every_part(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {"preview/clips/video/0", "preview/clips/video/1"} <= set(tags["images"])
    assert set(tags["audio"]) == {"preview/clips/audio/0", "preview/clips/audio/1"}
    assert {f"val/clips/velocity/{part}/mean" for part in ("video", "audio")} <= set(tags["scalars"])


def test_validation_has_numbers_of_every_part(run):
    (line,) = read_lines(run / "validation.jsonl")
    names = {name.removeprefix("clips/") for name in line}
    assert {"velocity/video/mean", "velocity/audio/t=0.3", "health/norm/layer=1", "health/align_cosine"} <= names
    assert "velocity/mean" not in names


def test_evaluate_measures_every_part_and_agrees_with_validation(run, tmp_path, capsys):
    assert main(["evaluate", "--run", str(run), "--device", "cpu", "--stream", "clips", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "step-00000004-clips.json").read_text())
    assert result["stream"] == "clips"
    assert result["failed"] == []
    assert result["measures"] == ["velocity", "knn", "health", "samples"]
    values = result["values"]
    assert all(np.isfinite(value) for value in values.values())
    for part in ("video", "audio"):
        assert {f"velocity/{part}/mean", f"velocity/{part}/t=0.8"} <= set(values)
        assert {f"samples/{part}/classifier/{name}" for name in ("FD (small classifier)", "KID")} <= set(values)
        assert result["networks"][f"{part}/classifier"].startswith("small classifier trained on synthetic clips data")
    assert "knn/best" in values
    assert "audio/classifier: small classifier" in capsys.readouterr().out
    (line,) = read_lines(run / "validation.jsonl")
    validated = {name.removeprefix("clips/"): value for name, value in line.items() if name.startswith("clips/")}
    assert {name: values[name] for name in validated} == pytest.approx(validated, rel=1e-6)


def test_images_cannot_be_asked_of_a_run_without_a_stream_of_images(run, tmp_path, capsys):
    assert main(["evaluate", "--run", str(run), "--npz", str(tmp_path / "samples"), "--device", "cpu"]) == 2
    assert "--npz: holds images, and none of clips is a stream of images alone" in capsys.readouterr().err
