"""selfflow train from the command line: what it prints, what it refuses before step 1, and what bad data does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.load import load_config
from core.training.records import read_lines
from tests.modalities.making import image_bytes, numbered
from tests.tools.tiny import CONFIG, STEPS, published, train
from tools.cli import COMMANDS, main

SIT = CONFIG.with_name("tiny_sit.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"selfflow {command} " in shown


def test_the_command_alone_and_a_wrong_command_show_the_usage(capsys):
    for arguments in ([], ["trian"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert "usage: selfflow" in capsys.readouterr().err


def test_a_run_leaves_what_it_promises(tiny_run):
    assert published(tiny_run) == [3, STEPS]
    entries = read_lines(tiny_run / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    for entry in entries:
        terms = {f"flow/{entry['stream']}", "align/teacher", "teacher_norm"}
        assert set(entry) == {"step", "stream", "lr", "loss", *terms, "grad_norm"}
    assert {path.name for path in tiny_run.iterdir()} >= {"config.yaml", "run.json", "timings.jsonl", "checkpoints"}
    assert not (tiny_run / "quarantine.jsonl").exists()


def test_print_config_is_complete_reads_back_and_writes_nothing(tmp_path, capsys):
    assert train(tmp_path / "run", "method=flow_matching", "--print-config") == 0
    shown = capsys.readouterr().out
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert load_config(again, []) == load_config(CONFIG, [f"run={tmp_path / 'run'}", "method=flow_matching"])
    plain = yaml.safe_load(shown)
    assert plain["noising"]["kind"] == "homogeneous"
    assert set(plain["alignment"].values()) == {None}
    assert plain["streams"]["audio"]["media"]["hop"] == 64
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["flow_matching", "self_flow"])
@pytest.mark.parametrize("config", [CONFIG, SIT])
def test_every_method_trains_on_every_trunk(method, config, tmp_path):
    assert train(tmp_path, f"method={method}", "training.steps=2", config=config) == 0
    terms = set(read_lines(tmp_path / "metrics.jsonl")[0])
    assert ("align/teacher" in terms) == (method == "self_flow")


def refused(capsys, tmp_path: Path, *overrides: str, config: Path = CONFIG) -> str:
    """The message of a train command that must fail before it makes a run folder, on one screen."""
    assert train(tmp_path / "run", *overrides, config=config) == 2
    shown = capsys.readouterr()
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in shown.err
    assert shown.err.startswith("error: ")
    assert len(shown.err.splitlines()) <= 12
    return shown.err


def test_all_problems_of_a_config_at_once_each_with_its_place(tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "streams:\n  image: {batch: 0, mask_ratio: 0.7}\n"
        "trunk:\n  mmdit: {widht: 32}\n"
        "training:\n  steps: soon\n  optimizer: {lr: -1}\n"
    )
    message = refused(capsys, tmp_path, "noising.mask=excat", config=path)
    for expected in (
        "wrong.yaml:2: streams.image.batch: 0 must be at least 1",
        "wrong.yaml:2: streams.image.mask_ratio: 0.7 must lie in (0, 0.5]",
        "wrong.yaml:4: trunk.mmdit.widht: unknown key",
        "Did you mean: 'width'?",
        "wrong.yaml:6: training.steps: expected int, got 'soon'",
        "wrong.yaml:7: training.optimizer.lr: -1.0 must be above 0",
        "command line 'noising.mask=excat': noising.mask: 'excat' is not one of bernoulli, exact",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method=selfflow", "method: 'selfflow' is not one of flow_matching, repa, sra, layersync, "),
        ("method=selfflow", "Did you mean: 'self_flow'?"),
        ("training.device=tpu", "training.device: 'tpu' is not one of auto, cpu, cuda"),
        ("streams.image.batch=1 training.accumulate=2", "streams.image.batch: 1 is less than training.accumulate 2"),
        ("streams.image.media.size=[9,8]", "size: 9 is not a multiple of patch 4; nearest: 8 or 12"),
        ("streams.video.media.frames=4", "frames: 4 is not 1 plus a multiple of patch_frames 2; nearest: 3 or 5"),
        (
            "alignment.ema_teacher.teacher_layer=1",
            "alignment.ema_teacher: need 1 <= student_layer < teacher_layer <= depth, got 1, 1, 3",
        ),
        ("condition.kind=labels", "condition.kind: 'labels' is not one of text, label"),
        ("trunk.kind=sit", "trunk.kind: 'sit' needs one stream of images alone and condition.kind: label"),
        ("streams.image.data.path=photos", "path: unknown key of kind 'synthetic'"),
        ("streams.audio.data.octave=9", "notes of octave 9 need at least"),
        ("training.ema.decay=1", "training.ema.decay: 1.0 must lie in [0, 1)"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(override, expected, tmp_path, capsys):
    assert expected in refused(capsys, tmp_path, *override.split())


def test_unknown_options_are_refused_and_settings_may_stand_behind_options(capsys):
    for arguments in (["train", str(CONFIG), "--dry-rnu"], ["inspect", "run", "seed=1"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert f"unknown arguments for {arguments[0]}: {arguments[-1]}" in capsys.readouterr().err
    assert main(["train", str(CONFIG), "--print-config", "seed=17"]) == 0
    assert "seed: 17" in capsys.readouterr().out


def test_a_missing_config_names_its_neighbors_and_a_missing_run_is_asked_for(capsys):
    assert main(["train", str(CONFIG.with_name("tiyn.yaml")), "run=x"]) == 2
    assert "Did you mean: 'tiny.yaml'?" in capsys.readouterr().err
    assert main(["train", str(CONFIG)]) == 2
    assert "add run=FOLDER" in capsys.readouterr().err


def test_a_sit_that_does_not_fit_the_data_says_what_would(tmp_path, capsys):
    message = refused(capsys, tmp_path, "trunk.sit.num_classes=10", config=SIT)
    assert "grid 2 x 2, channels 48, 24 classes + 1 null" in message


def photos(folder: Path, captions: bool = True, count: int = 8) -> Path:
    """A configuration for gray images beside it."""
    (folder / "photos").mkdir(parents=True)
    for index, pixels in enumerate(numbered(count, 8, 8)):
        (folder / "photos" / f"{index}.png").write_bytes(image_bytes(pixels))
        if captions:
            (folder / "photos" / f"{index}.txt").write_text(f"level {index}\n")
    path = folder / "photos.yaml"
    path.write_text(
        "streams: {image: {batch: 4, data: {kind: folder, path: photos}, media: {size: [8]}}}\n"
        "trunk: {mmdit: {size: tiny, width: 48, heads: 2, double_blocks: 1, single_blocks: 2}}\n"
        "training: {steps: 4, device: cpu, ema: {decay: 0.1}}\n"
    )
    return path


def test_a_folder_of_images_beside_the_config_trains_from_anywhere(tmp_path, monkeypatch):
    config = photos(tmp_path)
    monkeypatch.chdir(Path(__file__).parent)
    assert train(tmp_path / "run", config=config) == 0


def test_an_empty_folder_missing_captions_and_wrong_sizes_are_refused_before_step_1(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    config = photos(tmp_path)
    message = refused(capsys, tmp_path, "streams.image.data.path=empty", config=config)
    assert "empty holds no image file" in message
    message = refused(capsys, tmp_path, "streams.image.data.path=photo", config=config)
    assert "does not exist" in message
    assert "Did you mean: 'photos'?" in message
    message = refused(capsys, tmp_path, "streams.image.media.min_size=64", config=config)
    assert "8 x 8 pixels, the short side must have at least 64" in message
    message = refused(capsys, tmp_path, "streams.image.data.captions=none", config=config)
    assert "has no caption" in message

    bare = photos(tmp_path / "bare", captions=False)
    message = refused(capsys, tmp_path, config=bare)
    assert "no caption; needed: one of the fields caption, captions" in message
    assert train(tmp_path / "run", "streams.image.data.captions=label", config=bare) == 0


def test_damaged_files_are_replaced_noted_and_counted(tmp_path, capsys):
    config = photos(tmp_path)
    (tmp_path / "photos" / "2.png").write_bytes((tmp_path / "photos" / "2.png").read_bytes()[:40])
    (tmp_path / "photos" / "5.png").write_bytes(b"")
    for name, workers in (("run", 0), ("again", 1)):
        assert train(tmp_path / name, f"training.workers={workers}", config=config) == 0
        assert "2 bad records" in capsys.readouterr().err
    entries = read_lines(tmp_path / "run" / "quarantine.jsonl")
    assert {entry["key"]: entry["origin"] for entry in entries} == {
        name: str(tmp_path / "photos" / name) for name in ("2.png", "5.png")
    }
    assert all(entry["reason"] for entry in entries)
    for name in ("quarantine.jsonl", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    assert train(tmp_path / "limited", "training.data_limit=1", config=config) == 2
    message = capsys.readouterr().err
    assert "2 records could not be used, more than data_limit 1" in message
    assert str(tmp_path / "photos" / "5.png") in message
    assert str(tmp_path / "limited" / "quarantine.jsonl") in message
    assert len(read_lines(tmp_path / "limited" / "quarantine.jsonl")) == 2


def test_a_resume_uses_the_normalization_of_its_checkpoint(tmp_path):
    assert train(tmp_path, "training.steps=2") == 0
    state = json.loads(next((tmp_path / "checkpoints").glob("step-*/state.json")).read_text())
    means = state["extra"]["normalization"]["image"]["mean"]
    assert len(means) == 48
    assert np.isfinite(means).all()
    assert train(tmp_path, "training.steps=3") == 0
    again = json.loads(max((tmp_path / "checkpoints").glob("step-*/state.json")).read_text())
    assert again["extra"]["normalization"] == state["extra"]["normalization"]
