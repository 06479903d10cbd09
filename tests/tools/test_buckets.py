"""Several sizes through the command line: training and its resumption, generation, the dry run, encoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.training.records import read_lines
from modalities.latents.format import read_manifest
from tests.configs.test_buckets import COUNTS, pictures
from tests.tools.tiny import CONFIG, result
from tools.cli import main

YAML = f"""
base: {CONFIG}
streams:
  video: null
  audio: null
  image:
    batch: 2
    data: {{kind: folder, path: pictures, caption: grey}}
    media: {{size: [16], sizes: [[16, 16], [8, 16], [16, 8]], patch: 4}}
    timestep: {{kind: logit_normal, shift_rule: sd3, shift: 2.0, shift_tokens: 16}}
training: {{steps: 8, save_every: 4}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    pictures(folder, COUNTS)
    (folder / "run.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    assert main(["train", str(place / "run.yaml"), f"run={place / 'run'}"]) == 0
    return place / "run"


def test_steps_are_of_one_size_and_resumption_is_exact(place, run):
    streams = {entry["stream"] for entry in read_lines(run / "metrics.jsonl")}
    assert {"image_16x16", "image_8x16"} <= streams <= {"image_16x16", "image_8x16", "image_16x8"}
    for steps in (3, 8):
        assert main(["train", str(place / "run.yaml"), f"run={place / 'again'}", f"training.steps={steps}"]) == 0
    assert result(place / "again") == result(run)


def test_samples_of_every_size(run, tmp_path, capsys):
    asked = ["generate", "image", "--run", str(run), "--prompt", "a"]
    for size, shown in (("8x16", (16, 8)), ("16x8", (8, 16)), (None, (16, 16))):
        out = tmp_path / str(size)
        assert main([*asked, "--out", str(out), *([] if size is None else ["--size", size])]) == 0
        (path,) = out.glob("*.png")
        assert Image.open(path).size == shown
        assert json.loads(path.with_suffix(".json").read_text())["stream"] == f"image_{size or '16x16'}"
    assert main([*asked, "--out", str(tmp_path), "--size", "8x15"]) == 2
    assert "--size 8x15: image has the sizes 16x16, 8x16, 16x8. Did you mean: '8x16'?" in capsys.readouterr().err


def test_inspect_counts_the_records_of_every_size(place, capsys):
    command = ["inspect", str(place / "pictures"), "--data", "image", "--number", "0", "--sizes"]
    assert main([*command, "16x16,16x32,48x24"]) == 0
    told = capsys.readouterr().out
    assert "16 x 16: 12 records\n  16 x 32: 24 records, 24 enlarged\n  48 x 24: 6 records, 6 enlarged\n" in told
    assert main([*command, "16by16"]) == 2
    assert "--sizes: '16by16'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_dry_run_tells_the_records_of_every_size(place, capsys):
    assert main(["train", str(place / "run.yaml"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    # Of steps of 2, 4 and 4 samples, 6, 6 and 1.5 go through the records once.
    for name, records, share in (("image_16x16", 12, "44%"), ("image_8x16", 24, "44%"), ("image_16x8", 6, "11%")):
        assert f"{name}\n  records   {records}, drawn in {share} of the steps" in told
    assert "shift 2;" in told
    assert "shift 1.41421;" in told  # sqrt(8 / 16) of 2


def test_changes_of_what_was_consumed_are_refused(place, run, capsys):
    """Other records would have other shares, so that nobody would know what every size has consumed."""
    (place / "fewer").mkdir()
    for path in [*(place / "pictures").iterdir()][::2]:
        (place / "fewer" / path.name).symlink_to(path)
    command = ["train", str(place / "run.yaml"), f"run={run}", "training.steps=9", "--change"]
    for change, told in (
        ("streams.image.media.sizes=[[16, 16]]", "the order of its data goes on behind what every size has consumed"),
        ("streams.image.data={path: fewer, caption: gray}", "The records or their order have changed"),
    ):
        assert main([*command, change]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_latents_of_every_size(place, run, tmp_path):
    pytest.importorskip("streaming")
    assert main(["encode", str(place / "run.yaml"), "--out", str(tmp_path / "stored")]) == 0
    for size, tokens in (("16x16", 16), ("8x16", 8), ("16x8", 8)):
        manifest = read_manifest(tmp_path / "stored" / f"image_{size}")
        assert manifest.parts["image"].shape == (tokens, 48)
        assert manifest.samples == {"16x16": 12, "8x16": 24, "16x8": 6}[size]
    data = f"streams.image.data={{kind: latents, path: {tmp_path / 'stored'}}}"
    assert main(["train", str(place / "run.yaml"), f"run={tmp_path / 'run'}", data]) == 0
    media, latents = (read_lines(folder / "metrics.jsonl") for folder in (run, tmp_path / "run"))
    assert [entry["stream"] for entry in media] == [entry["stream"] for entry in latents]
    assert torch.isfinite(torch.tensor([entry["loss"] for entry in latents])).all()
