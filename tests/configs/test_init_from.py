"""A new run from the weights of another or of a file: strict, both networks from the EMA, and told in run.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from configs.build import build_trainer
from configs.init_from import Initial
from configs.load import load_config
from core.errors import CheckpointError, ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.initialize import initialize, matching
from tests.tools.tiny import CONFIG, STEPS, published, result, train
from tools.cli import main

SIT = CONFIG.with_name("tiny_sit.yaml")


def ema(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    store = CheckpointStore(run / "checkpoints")
    return store.load_weights(store.latest() if step is None else step, "teacher")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begun(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["init"]


def test_student_and_teacher_start_from_the_ema_of_a_run(tiny_run, tmp_path, capsys):
    config = load_config(CONFIG, [f"run={tmp_path}", "training.steps=2", "seed=9"])
    trainer = build_trainer(config, CONFIG.parent, initial=Initial(tiny_run))
    wanted = ema(tiny_run)
    assert same(trainer.student.state_dict(), wanted)
    assert same(trainer.teacher.state_dict(), wanted)
    assert not trainer.optimizer.state
    assert trainer.fit() == "finished"
    assert published(tmp_path) == [0, 2]
    assert same(ema(tmp_path, 0), wanted)
    assert f"latent statistics of image: those of {tiny_run} (step 6)" in capsys.readouterr().err
    stored = [
        CheckpointStore(run / "checkpoints").extra(step)["normalization"]
        for run, step in ((tmp_path, 2), (tiny_run, 6))
    ]
    assert stored[0] == stored[1]
    told = begun(tmp_path)
    assert (told["source"], told["kind"], told["step"], told["fresh_tensors"]) == (str(tiny_run), "run", 6, [])
    assert len(told["weights"]) == 32


@pytest.mark.slow
def test_a_run_from_weights_resumes_without_reading_them_again(tiny_run, tmp_path, monkeypatch, capsys):
    from tests.reliability.test_resume import stop_after

    source = tmp_path / "source"
    assert train(source, "training.steps=2") == 0
    arguments = ("training.steps=4", "--init-from", str(source))
    assert train(tmp_path / "whole", *arguments) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(tmp_path / "cut", *arguments) == 75
    assert train(tmp_path / "cut", *arguments[:1], "--init-from", str(tiny_run)) == 2
    assert f"started from {source}" in capsys.readouterr().err
    source.rename(tmp_path / "gone")
    assert train(tmp_path / "cut", *arguments) == 0  # the whole command, or the plain one
    assert train(tmp_path / "cut", "training.steps=5") == 0
    assert train(tmp_path / "whole", "training.steps=5") == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    assert train(tiny_run, "training.steps=9", "--init-from", str(tmp_path / "gone")) == 2
    assert "did not start from other weights" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "cut")]) == 0
    assert f"init      {source}, EMA of step 2" in capsys.readouterr().out


def test_a_run_that_was_to_start_from_weights_never_starts_from_random_ones(tiny_run, tmp_path, monkeypatch, capsys):
    config = load_config(CONFIG, [f"run={tmp_path}"])
    trainer = build_trainer(config, CONFIG.parent, initial=Initial(tiny_run))
    trainer.folder.close()  # killed before it published anything
    assert train(tmp_path) == 2
    assert f"was to start from {tiny_run} and has no checkpoint yet" in capsys.readouterr().err
    assert train(tmp_path, "training.steps=1", "--init-from", str(tiny_run)) == 0


@pytest.mark.slow
def test_what_may_differ_is_said_by_patterns(tiny_run, tmp_path, capsys):
    image = ("streams.video=null", "streams.audio=null", "training.steps=1")
    start = ("--init-from", str(tiny_run))
    assert train(tmp_path / "a", *image, *start) == 2
    message = capsys.readouterr().err
    assert "not of this network (--init-drop leaves such out): " in message
    assert "media_in.video" in message
    assert not (tmp_path / "a").exists()
    drop = [part for name in ("media_in", "media_out") for kind in ("video", "audio")
            for part in ("--init-drop", f"{name}.{kind}")]  # fmt: skip
    assert train(tmp_path / "a", *image, *start, *drop) == 0
    assert begun(tmp_path / "a")["drop"] == ["media_in.video", "media_in.audio", "media_out.video", "media_out.audio"]
    assert train(tmp_path / "b", *image, "method=flow_matching", *start, *drop, "--init-drop", "projector") == 0
    assert train(tmp_path / "c", *image, "--init-from", str(tmp_path / "b")) == 2
    assert "missing in it (--init-fresh keeps the initial values of such): projector.linear1" in capsys.readouterr().err
    assert train(tmp_path / "c", *image, "--init-from", str(tmp_path / "b"), "--init-fresh", "projector") == 0
    assert all(name.startswith("projector.") for name in begun(tmp_path / "c")["fresh_tensors"])
    assert train(tmp_path / "d", *image, *start, *drop, "--init-drop", "projectr") == 2
    assert "has nothing like 'projectr'" in capsys.readouterr().err
    assert train(tmp_path / "d", "--init-fresh", "projector") == 2
    assert "need --init-from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trunk.mmdit.heads=4", "trunk.mmdit.heads: 2 there, 4 here"),
        ("trunk.mmdit.rope_theta=100", "trunk.mmdit.rope_theta: 2000.0 there, 100.0 here"),
        ("streams.audio.media.exponent=1", "streams.audio.media.exponent: None there, 1.0 here"),
        ("condition.text.rows_per_word=8", "condition.text.rows_per_word: 4 there, 8 here"),
    ],
)
def test_settings_that_no_shape_shows_are_refused_by_name(override, expected, tiny_run, tmp_path, capsys):
    assert train(tmp_path / "run", override, "--init-from", str(tiny_run)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trunk.mmdit.heads=4", "trunk.mmdit.heads: 4, and the file's weights were trained with 2"),
        ("trunk.mmdit.time_scale=1", "trunk.mmdit.time_scale: 1.0, and the file's weights were trained with 1000.0"),
        ("streams.audio.media.exponent=1", "media.audio.exponent: 1.0, and the file's"),
        ("condition.text.rows_per_word=8", "condition.text.rows_per_word: 8, and the file's"),
    ],
)
def test_a_file_says_what_no_shape_shows(override, expected, tiny_run, tmp_path, capsys):
    file = tmp_path / "joint.safetensors"
    assert main(["export", "--run", str(tiny_run), "--to", str(file), "--kind", "native-mmdit"]) == 0
    assert train(tmp_path / "run", override, "--init-from", str(file)) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    parts = {"streams": ("media_in.audio", "media_out.audio"), "condition": ("context",)}.get(override.split(".")[0])
    if parts:  # where the layers start anew, their settings may differ
        anew = [word for part in parts for word in ("--init-drop", part, "--init-fresh", part)]
        assert train(tmp_path / "run", override, "training.steps=1", "--init-from", str(file), *anew) == 0
        measured = "latent statistics of audio: measured on the data" in capsys.readouterr().err
        assert measured == override.startswith("streams")


def test_layers_that_start_anew_may_have_other_settings_and_statistics_of_their_own(tiny_run, tmp_path, capsys):
    anew = [part for name in ("media_in.audio", "media_out.audio")
            for part in ("--init-drop", name, "--init-fresh", name)]  # fmt: skip
    other = ("streams.audio.media.hop=32", "streams.audio.media.seconds=0.3", "training.steps=1")
    assert train(tmp_path, *other, "--init-from", str(tiny_run), *anew) == 0
    message = capsys.readouterr().err
    assert "latent statistics of audio: measured on the data" in message
    assert f"latent statistics of video: those of {tiny_run}" in message


def test_classes_are_compared_by_name(tmp_path, capsys):
    assert train(tmp_path / "a", "training.steps=1", config=SIT) == 0
    store = CheckpointStore(tmp_path / "a" / "checkpoints")
    labels = store.extra(1)["labels"]
    config = load_config(SIT, [f"run={tmp_path / 'b'}"])
    from configs import init_from as initial

    source = initial.read_source(tmp_path / "a")
    initial.check_meaning(source, Initial(tmp_path / "a"), config, labels)
    with pytest.raises(ConfigError, match=f"labels: class 0 is '{labels[0]}' there, '{labels[1]}' here"):
        initial.check_meaning(source, Initial(tmp_path / "a"), config, [labels[1], labels[0], *labels[2:]])
    with pytest.raises(ConfigError, match="the rows of the label table are classes"):
        initial.check_meaning(source, Initial(tmp_path / "a"), config, labels[1:])
    initial.check_meaning(source, Initial(tmp_path / "a", ("y_embedder",)), config, labels[1:])


@pytest.mark.slow
def test_a_file_of_any_kind_that_import_reads(tiny_run, tmp_path, capsys):
    file = tmp_path / "joint.safetensors"
    assert main(["export", "--run", str(tiny_run), "--to", str(file), "--kind", "native-mmdit"]) == 0
    assert train(tmp_path / "a", "training.steps=1", "--init-from", str(file)) == 0
    assert same(ema(tmp_path / "a", 0), ema(tiny_run))
    assert begun(tmp_path / "a")["kind"] == "native-mmdit"
    assert f"latent statistics of image: those of {file}" in capsys.readouterr().err
    stored = CheckpointStore(tmp_path / "a" / "checkpoints").extra(1)["normalization"]
    assert stored == CheckpointStore(tiny_run / "checkpoints").extra(STEPS)["normalization"]
    assert train(tmp_path / "sit", "training.steps=1", config=SIT) == 0
    for kind in ("sit", "native-sit"):
        weights = tmp_path / f"{kind}.safetensors"
        drop = ["--drop", "projector"] if kind == "sit" else []
        assert main(["export", "--run", str(tmp_path / "sit"), "--to", str(weights), "--kind", kind, *drop]) == 0
        fresh = ["--init-fresh", "projector"] if kind == "sit" else []
        start = ("training.steps=1", "--init-from", str(weights), *fresh)
        assert train(tmp_path / f"from-{kind}", *start, config=SIT) == 0
        ours, theirs = ema(tmp_path / f"from-{kind}", 0), ema(tmp_path / "sit")
        kept = [name for name in theirs if kind != "sit" or not name.startswith("projector.")]
        assert all(torch.equal(ours[name], theirs[name]) for name in kept)


def test_a_source_that_is_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert train(tmp_path / "run", "--init-from", str(tmp_path / "empty")) == 2
    assert "holds no intact checkpoint" in capsys.readouterr().err
    assert train(tmp_path / "run", "--init-from", str(tmp_path / "absent.pt")) == 2
    assert "no such file" in capsys.readouterr().err
    assert train(tmp_path / "run", "--dry-run", "--init-from", str(tmp_path / "absent.pt")) == 2
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert train(tmp_path / "run", "--init-from", str(tmp_path / "other.safetensors")) == 2
    assert "of no known kind" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def network() -> torch.nn.Module:
    return torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(3, 1)})


def test_nothing_is_copied_where_anything_does_not_fit():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {name: torch.ones_like(value) for name, value in before.items()}
    for wrong, message in (
        ({"a.weight": torch.ones(3, 3)}, r"1 of another shape or type .*: a.weight \(3, 3\) float32, here \(3, 2\)"),
        ({"a.weight": torch.ones(3, 2).double()}, r"a.weight \(3, 2\) float64, here \(3, 2\) float32"),
        ({"a.weight": torch.full((3, 2), float("nan"))}, "1 with NaN or infinity: a.weight"),
        ({"c": torch.ones(1)}, "1 not of this network .*: c"),
    ):
        with pytest.raises(CheckpointError, match=message):
            initialize(model, good | wrong, "file")
    with pytest.raises(CheckpointError, match=r"1 missing in it .*: b\.bias"):
        initialize(model, {name: value for name, value in good.items() if name != "b.bias"}, "file")
    with pytest.raises(CheckpointError, match="2 asked to be fresh, but there"):
        initialize(model, good, "file", fresh=("b",))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    done = initialize(model, good | {"c": torch.ones(1)}, "file", drop=("c", "b"), fresh=("b.*",))
    assert (done.fresh, done.dropped) == (("b.weight", "b.bias"), ("b.weight", "b.bias", "c"))
    assert torch.equal(model["a"].weight, good["a.weight"])
    assert torch.equal(model["b"].weight, before["b.weight"])


def test_patterns_are_names_parts_or_have_stars():
    names = ["projector.a", "projectors.x.b", "blocks.0.w", "blocks.10.w"]
    assert matching(names, ["projector"], "it") == {"projector.a"}
    assert matching(names, ["blocks.1*", "projectors.x"], "it") == {"blocks.10.w", "projectors.x.b"}
    assert matching(names, ["*"], "it") == set(names)
    with pytest.raises(CheckpointError, match="Did you mean: 'projector"):
        matching(names, ["projectorz"], "it")


def finetuned(config: Path, source: Path, run: Path, capsys) -> str:
    """What `selfflow finetune` says."""
    assert main(["finetune", str(config), "--from", str(source), f"run={run}", "training.steps=2"]) == 0
    return capsys.readouterr().err


def test_finetuning_names_the_modalities_that_are_left_out_and_the_new_ones(tiny_run, tmp_path, capsys):
    settings = yaml.safe_load(CONFIG.read_text())
    settings["streams"] = {"sound": {**settings["streams"]["audio"], "modality": "audio", "weight": 1.0}}
    config = tmp_path / "other.yaml"
    config.write_text(yaml.safe_dump(settings))
    told = finetuned(config, tiny_run, tmp_path / "less", capsys)
    assert f"{tiny_run} (step 6): left out of it: media_in.image, media_in.video, media_out.image, media_out.vi" in told
    assert "initialized: " not in told
    source, own = ema(tiny_run), ema(tmp_path / "less", 0)
    assert own
    assert all(torch.equal(value, source[name]) for name, value in own.items())

    told = finetuned(CONFIG, tmp_path / "less", tmp_path / "more", capsys)
    assert "left out of it" not in told
    assert "initialized: media_in.image, media_in.video, media_out.image, media_out.video" in told
    source, own = ema(tmp_path / "less"), ema(tmp_path / "more", 0)
    assert all(torch.equal(own[name], source[name]) for name in source)
    assert begun(tmp_path / "more")["fresh_tensors"] == [name for name in own if name not in source]
    assert main(["finetune", str(CONFIG), "--from", str(tmp_path / "less"), f"run={tmp_path / 'more'}"]) == 0
    assert "finished after 6 of 6 steps" in capsys.readouterr().out  # it went on from its own checkpoint of step 2
