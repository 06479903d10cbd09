"""selfflow init: from a folder of media to a configuration that is checked, trained and generated with as it is."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from pyarrow import parquet

from configs.load import load_config
from modalities.media.writing import write_video
from tests.modalities.making import image_bytes, numbered
from tools.cli import main

# The written settings are for minutes of training; these are for seconds, and leave the data and media as they are.
QUICK = [
    "training.steps=2",
    "training.workers=0",
    "trunk.mmdit={size: tiny, width: 192, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def images(folder: Path, count: int, height: int = 24, width: int = 40, caption: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(numbered(count, height, width)):
        (folder / f"{index:03d}.png").write_bytes(image_bytes(pixels))
        if caption is not None:
            (folder / f"{index:03d}.txt").write_text(caption.format(index))


def audio(folder: Path, count: int, seconds: float = 0.4, rate: int = 8000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        times = np.arange(round(seconds * rate)) / rate
        soundfile.write(folder / f"{index:03d}.wav", 0.5 * np.sin(2 * np.pi * (300 + 20 * index) * times), rate)


def videos(folder: Path, count: int, frames: int = 12, fps: float = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        media = torch.linspace(-1, 1, frames)[:, None, None, None].expand(frames, 3, 32, 48) * (1 - index / count)
        write_video(media.contiguous(), folder / f"{index:03d}", fps)


def init(path: str, *options: str) -> int:
    return main(["init", path, "--device", "cpu", *options])


def works(config: str, modality: str, *prompt: str) -> None:
    """Dry run, training and generation of a written configuration."""
    assert main(["train", config, "--dry-run"]) == 0
    assert main(["train", config, "run=run", *QUICK]) == 0
    assert main(["generate", modality, "--run", "run", "--steps", "1", *prompt]) == 0
    assert list(Path("run/generated", modality).glob("0000*"))


def test_images_with_captions(capsys):
    images(Path("photos"), 40, caption="an image with the number {} and quite some words behind it")
    assert init("photos") == 0
    shown = capsys.readouterr().out
    assert "image     40 images, 40 x 24 (folder" in shown
    assert "captions: median 12 words" in shown
    assert "selfflow train photos.yaml run=runs/photos" in shown
    config = load_config(Path("photos.yaml"), [])
    image = config.streams["image"]
    assert list(config.streams) == ["image"]
    assert image.media.size == [16]  # a multiple of 16 that enlarges none
    assert (config.condition.kind, config.condition.text.max_words) == ("text", 16)
    assert (image.data.split, image.val.split, image.val.path) == ("train", "test", image.data.path)
    works("photos.yaml", "image", "--prompt", "an image")
    assert "condition." not in capsys.readouterr().err  # no limit cuts anything


def test_folders_that_are_classes(capsys):
    for name in ("cats", "dogs"):
        images(Path("pets", name), 12)
    assert init("pets") == 0
    assert "2 classes: cats, dogs" in capsys.readouterr().out
    assert load_config(Path("pets.yaml"), []).condition.kind == "label"
    works("pets.yaml", "image", "--class", "cats")


def test_neither_captions_nor_classes():
    images(Path("plain"), 5)
    assert init("plain") == 0
    config = load_config(Path("plain.yaml"), [])
    assert (config.condition.kind, config.streams["image"].val) == ("none", None)
    assert config.streams["image"].sampling.cfg_scale == 1
    works("plain.yaml", "image")


def test_all_modalities_at_once_where_only_some_have_captions(capsys):
    images(Path("mix"), 20, caption="number {}")
    (Path("mix/000.txt")).unlink()
    audio(Path("mix/low"), 6)
    audio(Path("mix/high"), 6)
    videos(Path("mix/clips"), 4)
    Path("mix/notes.pdf").write_bytes(b"x")
    assert init("mix", "--out", "joint.yaml") == 0
    shown = capsys.readouterr().out
    assert "95% have one" in shown
    assert "left out  files that are no media here: 1 .pdf" in shown
    streams = load_config(Path("joint.yaml"), []).streams
    assert streams["image"].data.caption_default == "an image"
    assert streams["audio"].data.captions == "label"
    assert streams["video"].data.caption == "a video"
    assert (streams["audio"].media.sample_rate, streams["audio"].media.seconds) == (8000, 0.4)
    assert streams["video"].media.fps == 9  # nine frames in one second
    works("joint.yaml", "video", "--prompt", "a video")


def test_folders_of_training_and_validation():
    images(Path("set/train"), 8, caption="one {}")
    images(Path("set/val"), 4, caption="two {}")
    images(Path("set/other"), 4)
    assert init("set") == 0
    image = load_config(Path("set.yaml"), []).streams["image"]
    assert (Path(image.data.path).name, Path(image.val.path).name) == ("train", "val")
    assert image.val.kind == "folder"


def test_tars_and_parquet_files(capsys):
    Path("tars").mkdir()
    table = {"jpg": [], "text": [], "url": []}
    with tarfile.open("tars/a.tar", "w") as tar:
        for index, pixels in enumerate(numbered(24, 20, 20)):
            data = image_bytes(pixels)
            for name, content in ((f"{index}.png", data), (f"{index}.json", json.dumps({"caption": "a b c"}).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for name, value in {"jpg": data, "text": f"level {index}", "url": "x"}.items():
                table[name].append(value)
    assert init("tars") == 0
    assert load_config(Path("tars.yaml"), []).streams["image"].data.kind == "webdataset"
    works("tars.yaml", "image", "--prompt", "a b c")
    parquet.write_table(pa.table(table), "set.parquet", row_group_size=8)
    assert init("set.parquet") == 0
    data = load_config(Path("set.yaml"), []).streams["image"].data
    assert (data.kind, data.media_field, data.caption_fields) == ("parquet", "jpg", ["text"])
    assert main(["train", "set.yaml", "--dry-run"]) == 0


def test_nothing_is_overwritten_and_what_cannot_be_used_is_named(capsys):
    images(Path("photos"), 3)
    Path("photos.yaml").write_text("mine")
    assert init("photos") == 2
    assert "photos.yaml is there already and is not overwritten" in capsys.readouterr().err
    assert Path("photos.yaml").read_text() == "mine"
    assert init("photos", "--out", "no/where.yaml") == 2
    assert "the folder no does not exist" in capsys.readouterr().err
    assert init("nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    Path("empty").mkdir()
    Path("empty/a.docx").write_text("x")
    assert init("empty") == 2
    shown = capsys.readouterr().err
    assert "holds nothing that can be trained on" in shown
    assert "1 .docx" in shown
    Path("broken").mkdir()
    Path("broken/a.png").write_text("x")
    assert init("broken") == 2
    assert "image: none of 1 files can be read; the first: " in capsys.readouterr().err
    assert not Path("broken.yaml").exists()


def test_some_broken_files_are_counted_and_only_leaves_the_others_out(capsys):
    images(Path("photos"), 5)
    Path("photos/bad.png").write_text("x")
    audio(Path("photos"), 3)
    assert init("photos", "--only", "image") == 0
    assert "1 of 6 that were looked at cannot be read" in capsys.readouterr().out
    assert list(load_config(Path("photos.yaml"), []).streams) == ["image"]


def test_names_that_yaml_or_the_shell_would_read_otherwise(capsys):
    images(Path("my photos: #1 'x'"), 3, caption="one")
    assert init("my photos: #1 'x'", "--out", "one.yaml") == 0
    assert main(["train", "one.yaml", "--dry-run"]) == 0
