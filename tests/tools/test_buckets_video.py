"""Videos of several sizes through the command line: training with previews, resumption, generation, encoding."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from core.training.records import read_lines
from modalities.latents.format import read_manifest
from tests.modalities.making import numbered, video_file
from tests.tools.tiny import CONFIG, result
from tools.cli import main

pytestmark = pytest.mark.slow

CLIPS = {(32, 48): 6, (48, 32): 4, (40, 40): 4}  # height and width of files -> how many
SCALE = 16  # of a short side of 16 pixels, to 256
FITTING = {"16x24": 6, "24x16": 4, "16x16": 4}
YAML = f"""
base: {CONFIG}
streams:
  image: null
  audio: null
  video:
    batch: 2
    modes: {{first_frame: 0.5}}
    data: {{kind: folder, path: clips, caption: grey}}
    val: {{path: held}}
    media: {{size: [16, 24], sizes: [[16, 24], [24, 16], [16, 16]], frames: 3, fps: 8, patch: 4, patch_frames: 2}}
    timestep: {{kind: logit_normal, shift_rule: sd3, shift: 2.0, shift_tokens: 48}}
training: {{steps: 8, save_every: 4, preview: {{every: 4, samples: 1}}, validate: {{every: 4, records: 2}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for place, more in (("clips", 0), ("held", 1)):  # of other lengths, so that no record is in both
        (folder / place).mkdir()
        for (height, width), count in CLIPS.items():
            for index in range(count):
                pixels = numbered(9 + index + 8 * more, height, width)
                video_file(folder / place / f"{place}-{height}x{width}-{index}.mp4", pixels, fps=8)
    (folder / "run.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    assert main(["train", str(place / "run.yaml"), f"run={place / 'run'}"]) == 0
    return place / "run"


def shape_of(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a video file; ours are written enlarged, so that players show small ones."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height // SCALE, frames[0].width // SCALE


def test_steps_are_of_one_size_and_resumption_is_exact(place, run):
    streams = [entry["stream"] for entry in read_lines(run / "metrics.jsonl")]
    assert {"video_16x24", "video_24x16"} <= set(streams) <= {f"video_{size}" for size in FITTING}
    for steps in (3, 8):
        assert main(["train", str(place / "run.yaml"), f"run={place / 'again'}", f"training.steps={steps}"]) == 0
    assert result(place / "again") == result(run)


def test_previews_and_validation_are_of_every_size(run):
    for size in FITTING:
        height, width = map(int, size.split("x"))
        files = sorted((run / "samples").rglob(f"*{size}*.mp4"))
        assert files, size
        assert {shape_of(path) for path in files} == {(3, height, width)}
    measured = {key for entry in read_lines(run / "validation.jsonl") for key in entry}
    assert all(any(f"video_{size}" in key for key in measured) for size in FITTING)


def test_samples_of_every_size(run, tmp_path, capsys):
    asked = ["generate", "video", "--run", str(run), "--prompt", "grey", "--out"]
    for size in (None, "24x16", "16x16"):
        out = tmp_path / str(size)
        assert main([*asked, str(out), *([] if size is None else ["--size", size])]) == 0
        (path,) = out.glob("*.mp4")
        assert shape_of(path) == (3, *map(int, (size or "16x24").split("x")))
    assert main([*asked, str(tmp_path), "--size", "24x24"]) == 2
    assert "--size 24x24: video has the sizes 16x24, 24x16, 16x16." in capsys.readouterr().err


def test_latents_of_every_size_are_trained_on(place, run, tmp_path):
    pytest.importorskip("streaming")
    assert main(["encode", str(place / "run.yaml"), "--out", str(tmp_path / "stored")]) == 0
    for size, records in FITTING.items():
        height, width = map(int, size.split("x"))
        manifest = read_manifest(tmp_path / "stored" / f"video_{size}")
        assert manifest.samples == records
        assert manifest.parts["video"].shape[0] == 2 * (height // 4) * (width // 4)  # the first frame alone, then two
    data = [f"streams.video.data={{kind: latents, path: {tmp_path / 'stored'}}}", "training.validate.every=0"]
    assert main(["train", str(place / "run.yaml"), f"run={tmp_path / 'run'}", *data]) == 0
    media, latents = (read_lines(folder / "metrics.jsonl") for folder in (run, tmp_path / "run"))
    assert [entry["stream"] for entry in media] == [entry["stream"] for entry in latents]
    assert torch.isfinite(torch.tensor([entry["loss"] for entry in latents])).all()


def test_another_order_of_sizes_does_not_fit_the_run(place, run, capsys):
    changed = "streams.video.media.sizes=[[16, 24], [24, 16]]"
    assert main(["train", str(place / "run.yaml"), f"run={run}", "training.steps=9", changed]) == 2
    assert "streams.video.media.sizes" in capsys.readouterr().err
