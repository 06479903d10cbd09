"""Previews, validation, milestones and post-hoc EMA of `selfflow train`: what they leave, and that training is the
same without them."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.build import build_trainer
from configs.load import load_config
from configs.runs import load_run
from core.training.checkpoint import CheckpointStore, digest
from core.training.records import read_lines
from core.training.trainer import Trainer
from modalities.generation import generate
from modalities.video import VideoAdapter
from tests.modalities.making import image_bytes, numbered
from tests.tools.tiny import CONFIG, STEPS, published, result, train
from tools.cli import main

HELDOUT = (
    "streams.image.val={size: 8, count: 20, seed: 1}",
    "streams.video.val={size: 8, frames: 3, count: 20, seed: 1}",
    "streams.audio.val={seconds: 0.3, count: 20, seed: 1}",
)
VALIDATE = ("training.validate.every=3", "training.validate.records=8", *HELDOUT)
PREVIEW = ("training.preview.every=2", "training.preview.samples=2")
AUDIO = ("streams.video=null", "streams.image=null")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def averages(run: Path) -> dict[int, dict[str, str]]:
    """Step -> a checksum of each stored average."""
    store = CheckpointStore(run / "ema")
    parts = ("ema-0.05", "ema-0.1")
    return {step: digest({part: store.load_weights(step, part) for part in parts}) for step in store.steps()}


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """The tiny run with everything that looks at it."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    board = "logging.tensorboard=true"
    assert train(folder, *VALIDATE, *PREVIEW, board) == 0
    return folder


def test_neither_previews_nor_validation_change_a_bit_of_the_training(watched, tiny_run):
    assert result(watched) == result(tiny_run)


def test_a_preview_has_samples_of_every_modality_and_an_index(watched):
    assert sorted(path.name for path in (watched / "samples").iterdir()) == [f"step-0000000{n}" for n in (2, 4, 6)]
    folder = watched / "samples" / "step-00000002"
    index = json.loads((folder / "index.json").read_text())
    assert (index["step"], index["weights"], index["failed"]) == (2, "ema", {})
    assert {path.name for path in folder.iterdir()} == {
        "index.json",
        "image-grid.png",
        *(entry["file"] for entry in index["samples"]),
    }
    assert [(entry["stream"], entry["index"]) for entry in index["samples"]] == [
        (name, number) for name in ("image", "video", "audio") for number in (0, 1)
    ]
    assert {entry["file"].rpartition(".")[2] for entry in index["samples"]} == {"png", "mp4", "wav"}
    assert index["samplers"]["image"]["steps"] == 3
    for name in ("image", "video", "audio"):
        prompts = [entry["prompt"] for entry in index["samples"] if entry["stream"] == name]
        assert len(set(prompts)) == 2  # captions of the data, different ones
    later = json.loads((watched / "samples" / "step-00000006" / "index.json").read_text())
    assert later["samples"] == index["samples"]
    assert (folder / "image-000.png").read_bytes() != (folder.parent / "step-00000006" / "image-000.png").read_bytes()


def test_a_preview_is_what_generate_makes_of_that_checkpoint(watched):
    loaded = load_run(watched, STEPS, device="cpu")
    folder = watched / "samples" / f"step-{STEPS:08d}"
    index = json.loads((folder / "index.json").read_text())
    sampler = loaded.config.streams["image"].sampling
    prompts = [entry["prompt"] for entry in index["samples"] if entry["stream"] == "image"]
    for number, media in enumerate(generate(loaded.generator, "image", prompts, sampler, seed=0)):
        path = loaded.generator.parts["image"]["image"].adapter.write(
            media["image"], watched.parent / f"again-{number}"
        )
        assert path.read_bytes() == (folder / f"image-{number:03d}.png").read_bytes()


def test_validation_is_what_evaluate_measures_of_that_checkpoint(watched):
    lines = read_lines(watched / "validation.jsonl")
    assert [line["step"] for line in lines] == [3, 6]
    settings = ["streams.image.evaluation={measures: [velocity, health], val: 8}"]
    assert main(["evaluate", "--run", str(watched), "--stream", "image", *settings]) == 0
    measured = json.loads((watched / "evaluation" / "step-00000006-image.json").read_text())["values"]
    mine = {name.removeprefix("image/"): value for name, value in lines[1].items() if name.startswith("image/")}
    assert mine == pytest.approx(measured, rel=1e-6)
    assert {"velocity/mean", "velocity/t=0.5", "health/norm/layer=1", "health/align_cosine"} <= mine.keys()
    for name in ("image", "video", "audio"):
        assert lines[0][f"{name}/velocity/mean"] != lines[1][f"{name}/velocity/mean"]


def test_tensorboard_has_images_videos_audio_and_val_numbers(watched):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched / "tensorboard"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {"preview/image", "preview/video/0", "preview/video/1"} <= set(tags["images"])
    assert set(tags["audio"]) == {"preview/audio/0", "preview/audio/1"}
    assert [event.step for event in events.Images("preview/image")] == [2, 4, 6]
    video = events.Images("preview/video/0")[0].encoded_image_string
    assert video.startswith(b"GIF8")
    assert [event.step for event in events.Scalars("val/image/velocity/mean")] == [3, 6]


def test_the_files_go_to_wandb(tmp_path, monkeypatch):
    import sys
    from importlib.machinery import ModuleSpec

    logged = []

    class Wandb:
        __spec__ = ModuleSpec("wandb", None)

        @staticmethod
        def init(**given):
            return Wandb()

        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            pass

    for kind in ("Image", "Video", "Audio"):
        setattr(Wandb, kind, staticmethod(lambda path, kind=kind, **given: (kind, Path(path).exists(), given)))
    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert train(tmp_path, *PREVIEW, "training.steps=2", "logging.wandb=offline") == 0
    (shown,) = [values for step, values in logged if any(name.startswith("preview/") for name in values)]
    assert set(shown) == {"preview/image", *(f"preview/{name}/{i}" for name in ("video", "audio") for i in (0, 1))}
    kind, exists, given = shown["preview/video/0"]
    assert (kind, exists, given["format"]) == ("Video", True, "mp4")
    assert all(exists for _, exists, _ in shown.values())


def test_prompts_of_the_user_and_batches_of_any_size(tmp_path):
    prompts = "training.preview.prompts={image: [a red circle, a red circle, a blue square]}"
    for name, batch in (("one", 1), ("three", 3)):
        settings = (prompts, f"training.preview.batch={batch}", "training.steps=2", *PREVIEW)
        assert train(tmp_path / name, *settings) == 0
    samples = contents(tmp_path / "one" / "samples")
    assert samples == contents(tmp_path / "three" / "samples")
    index = json.loads(samples["step-00000002/index.json"])
    asked = [entry["prompt"] for entry in index["samples"] if entry["stream"] == "image"]
    assert asked == ["a red circle", "a red circle", "a blue square"]
    assert samples["step-00000002/image-000.png"] != samples["step-00000002/image-001.png"]  # other noise


def test_classes_are_shown_and_unknown_ones_refused(tmp_path, capsys):
    config = CONFIG.with_name("tiny_sit.yaml")
    wrong = "training.preview.prompts={image: [a hamster]}"
    assert train(tmp_path / "no", *PREVIEW, wrong, config=config) == 2
    assert "class 'a hamster' is not one of the run's classes" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert train(tmp_path / "run", *PREVIEW, "training.steps=2", config=config) == 0
    index = json.loads((tmp_path / "run" / "samples" / "step-00000002" / "index.json").read_text())
    labels = load_run(tmp_path / "run", device="cpu").generator.conditions.labels
    assert {entry["prompt"] for entry in index["samples"]} <= set(labels)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["training.validate.every=2"], "training.validate.every: nothing to validate on; name records"),
        (["training.preview.prompts={vidoe: [x]}"], "training.preview.prompts.vidoe: the run has no such stream"),
        (
            ["training.validate.every=2", "streams.image.val={size: 8, count: 60}"],
            "streams.image.val: holds records that the run is trained on",
        ),
        (["training.keep_every=-1"], "training.keep_every: -1 must be at least 0"),
        (["training.posthoc_ema.lengths=[0.1]"], "training.posthoc_ema.lengths: [0.1]: two different ones"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(settings, expected, tmp_path, capsys):
    assert train(tmp_path / "run", *settings) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_modalities_without_val_records_are_named(tmp_path, capsys):
    assert train(tmp_path, "training.steps=3", *VALIDATE[:3]) == 0
    shown = capsys.readouterr().err
    for name in ("video", "audio"):
        assert f"note: {name} is not validated: streams.{name}.val is not set" in shown
    (line,) = read_lines(tmp_path / "validation.jsonl")
    assert {name.partition("/")[0] for name in line} == {"step", "image"}


def test_a_preview_that_fails_is_a_line_and_the_others_are_made(tmp_path, tiny_run, monkeypatch, capsys):
    def missing(self, media, path):
        raise RuntimeError("no encoder for mp4\nlong details")

    with monkeypatch.context() as patch:
        patch.setattr(VideoAdapter, "write", missing)
        assert train(tmp_path, *PREVIEW) == 0
    shown = capsys.readouterr().err
    for step in (2, 4, 6):
        line = f"preview of video, step {step}, failed, the training goes on: RuntimeError: no encoder for mp4\n"
        assert shown.count(line) == 1
    index = json.loads((tmp_path / "samples" / "step-00000004" / "index.json").read_text())
    assert index["failed"] == {"video": "RuntimeError: no encoder for mp4"}
    assert {entry["stream"] for entry in index["samples"]} == {"image", "audio"}
    assert result(tmp_path) == result(tiny_run)


def test_a_full_disk_under_previews_validation_and_snapshots_does_not_end_the_run(
    tmp_path, tiny_run, monkeypatch, capsys
):
    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    publish = CheckpointStore.publish

    def publish_checkpoints_only(self, step, state, extra):
        return full() if self.root.name == "ema" else publish(self, step, state, extra)

    with monkeypatch.context() as patch:
        patch.setattr("modalities.monitoring.preview.write_durably", full)
        patch.setattr("modalities.monitoring.validation.append_durably", full)
        patch.setattr(CheckpointStore, "publish", publish_checkpoints_only)
        assert train(tmp_path, *PREVIEW, *VALIDATE, "training.posthoc_ema.every=6") == 0
    shown = capsys.readouterr().err
    for what in ("preview of step 2", "validation of step 3", "EMA snapshot of step 6"):
        assert f"{what} failed, the training goes on: OSError: [Errno 28] No space left on device" in shown
    assert list((tmp_path / "samples").iterdir()) == []
    found, plain = result(tmp_path), result(tiny_run)
    assert found == plain


def stopped(run: Path, monkeypatch, step: int, *settings: str) -> None:
    """A run that gets SIGTERM during a step."""
    plain = Trainer.train_step

    def train_step(self, number, microbatches):
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, number, microbatches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert train(run, *settings) == 75


def test_a_stopped_run_owes_its_preview_and_makes_it_once_when_it_goes_on(tmp_path, watched, monkeypatch):
    stopped(tmp_path, monkeypatch, 4, *PREVIEW, *VALIDATE)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000002"]
    made, plain = [], Trainer.look

    def look(self):
        before = {path.name for path in (tmp_path / "samples").iterdir()}
        plain(self)
        made.extend(sorted({path.name for path in (tmp_path / "samples").iterdir()} - before))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "look", look)
        assert train(tmp_path, *PREVIEW, *VALIDATE) == 0
    assert made == ["step-00000004", "step-00000006"]
    assert contents(tmp_path / "samples") == contents(watched / "samples")
    assert (tmp_path / "validation.jsonl").read_bytes() == (watched / "validation.jsonl").read_bytes()


def test_steps_that_a_resume_goes_back_behind_lose_their_previews_and_lines(tmp_path, watched):
    settings = (*PREVIEW, *VALIDATE)
    assert train(tmp_path, *settings, "training.posthoc_ema.every=2") == 0
    snapshots, samples = averages(tmp_path), contents(tmp_path / "samples")
    lines = (tmp_path / "validation.jsonl").read_bytes()
    for path in sorted((tmp_path / "checkpoints").iterdir())[1:]:  # step 3 is the newest one
        for file in path.rglob("*"):
            if file.is_file():
                file.unlink()
    (tmp_path / "samples" / "step-00000006" / "index.json").write_text("of another life")
    (tmp_path / "samples" / ".writing-step-00000008").mkdir()
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write('{"step": 9, "image/veloc')
    trainer = build_trainer(
        load_config(CONFIG, [f"run={tmp_path}", *settings, "training.posthoc_ema.every=2"]), CONFIG.parent
    )
    assert trainer.resume() == 3
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000002"]
    assert [line["step"] for line in read_lines(tmp_path / "validation.jsonl")] == [3]
    assert CheckpointStore(tmp_path / "ema").steps() == [2]
    trainer.fit()
    assert contents(tmp_path / "samples") == samples
    assert (tmp_path / "validation.jsonl").read_bytes() == lines
    assert averages(tmp_path) == snapshots
    assert result(tmp_path)["teacher"] == result(watched)["teacher"]


def test_all_of_it_may_change_when_a_run_goes_on(tmp_path):
    assert train(tmp_path, "training.steps=2", *PREVIEW) == 0
    changed = ("training.preview.every=3", "training.preview.seed=5", "training.keep_every=3", *VALIDATE)
    assert train(tmp_path, "training.steps=3", *changed) == 0
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000002", "step-00000003"]


def test_milestones_are_published_and_stay(tmp_path):
    assert train(tmp_path, "training.steps=7", "training.save_every=3", "training.keep_every=2") == 0
    assert published(tmp_path) == [2, 4, 6, 7]


def test_any_ema_length_can_be_exported_and_generated_from(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "training.posthoc_ema.every=1", *AUDIO) == 0
    assert published(run) == [3, 6]
    made = {}
    for length in ("0.05", "0.2"):
        out = tmp_path / f"{length}.safetensors"
        command = ["export", "--run", str(run), "--to", str(out), "--kind", "native-mmdit", "--ema-length", length]
        assert main(command) == 0
        shown = capsys.readouterr()
        assert f"EMA (length {length}) weights of step 6" in shown.out
        assert f"EMA of length {length} up to step 6, from 12 stored averages" in shown.err
        made[length] = out.read_bytes()
    assert made["0.05"] != made["0.2"]
    kept = CheckpointStore(run / "ema").load_weights(6, "ema-0.05")
    loaded = load_run(run, device="cpu", ema_length=0.05)
    for name, tensor in loaded.generator.trunk.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], rtol=1e-5, atol=1e-6)
    generate_command = ["generate", "audio", "--run", str(run), "--prompt", "notes C", "--steps", "2"]
    assert main([*generate_command, "--ema-length", "0.2", "--out", str(tmp_path / "sounds")]) == 0
    (about,) = (json.loads(path.read_text()) for path in (tmp_path / "sounds").glob("*.json"))
    assert about["ema_length"] == 0.2
    assert main([*generate_command, "--ema-length", "0.5"]) == 2
    assert "0.5 must lie in (0, 0.28]" in capsys.readouterr().err


def test_without_snapshots_an_ema_length_is_refused(tiny_run, capsys):
    command = ["export", "--run", str(tiny_run), "--to", "x.safetensors", "--kind", "native-mmdit"]
    assert main([*command, "--ema-length", "0.1"]) == 2
    assert "no EMA snapshots up to step 6; a run makes them with training.posthoc_ema.every" in capsys.readouterr().err


def test_post_hoc_averages_change_no_bit_and_are_part_of_a_resume(tmp_path, tiny_run):
    posthoc = "training.posthoc_ema.every=2"
    for name, lengths in (("whole", (6,)), ("cut", (1, 5, 6))):
        for steps in lengths:
            assert train(tmp_path / name, posthoc, f"training.steps={steps}") == 0
    assert result(tmp_path / "whole") == result(tmp_path / "cut") == result(tiny_run)
    assert averages(tmp_path / "whole")[6] == averages(tmp_path / "cut")[6]
    assert train(tmp_path / "whole", "training.steps=8") == 2  # they cannot be left out half-way


def test_images_that_a_source_cannot_read_do_not_end_a_preview(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, pixels in enumerate(numbered(8, 8, 8)):
        (photos / f"{index}.png").write_bytes(image_bytes(pixels))
        if index:  # the first has no caption
            (photos / f"{index}.txt").write_text(f"level {index}\n")
    data = f"streams.image.data={{kind: folder, path: {photos}}}"
    alone = ("streams.video=null", "streams.audio=null", data, "training.steps=2")
    assert train(tmp_path / "run", *alone, *PREVIEW[:1]) == 0
    folder = tmp_path / "run" / "samples" / "step-00000002"
    prompts = {entry["prompt"] for entry in json.loads((folder / "index.json").read_text())["samples"]}
    assert len(prompts) == 4
    assert all(prompt.startswith("level ") for prompt in prompts)
    assert Image.open(folder / "image-grid.png").size[0] > 8
