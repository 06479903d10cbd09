"""selfflow import and export: weights go round byte for byte, and an imported run generates and trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoencoders.base import Whitening
from core.training.checkpoint import CheckpointStore, digest
from core.training.records import read_lines
from core.trunk.foreign import read_state_dict
from modalities.base import AutoencoderAdapter
from tests.tools.tiny import CONFIG, published, train
from tools.cli import main

SIT = CONFIG.with_name("tiny_sit.yaml")
CLASSES = 24


@pytest.fixture(scope="module")
def sit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sit") / "run"
    assert train(folder, config=SIT) == 0
    return folder


@pytest.fixture(scope="module")
def released(sit_run, tmp_path_factory) -> Path:
    """The run's EMA weights as a file of the released kind."""
    path = tmp_path_factory.mktemp("released") / "weights.pt"
    assert export(sit_run, path, "selfflow") == 0
    return path


def export(run: Path, path: Path, kind: str, *more: str) -> int:
    return main(["export", "--run", str(run), "--to", str(path), "--kind", kind, *more])


def bring(path: Path, run: Path, *more: str, config: Path = SIT) -> int:
    return main(["import", str(path), "--config", str(config), f"run={run}", *more])


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    store = CheckpointStore(run / "checkpoints")
    return store.load_weights(store.latest(), part)


def test_the_exported_file_is_the_ema(sit_run, released):
    file = read_state_dict(released)
    teacher = weights(sit_run, "teacher")
    assert file.keys() == teacher.keys()
    assert all(torch.equal(file[name], value) for name, value in teacher.items())


def test_the_student_of_an_older_step(tiny_run, tmp_path):
    path = tmp_path / "student.pt"
    assert export(tiny_run, path, "native-mmdit", "--student", "--step", "3") == 0
    student = CheckpointStore(tiny_run / "checkpoints").load_weights(3, "student")
    assert digest({"": read_state_dict(path)}) == digest({"": student})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_goes_round_byte_for_byte(sit_run, tmp_path, suffix):
    first, second, run = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", tmp_path / "run"
    assert export(sit_run, first, "selfflow") == 0
    assert bring(first, run) == 0
    assert published(run) == [0]
    assert digest({"": weights(run, "student")}) == digest({"": weights(sit_run, "teacher")})
    assert digest({"": weights(run, "teacher")}) == digest({"": weights(sit_run, "teacher")})
    assert export(run, second, "selfflow") == 0
    assert digest({"": read_state_dict(first)}) == digest({"": read_state_dict(second)})
    if suffix == ".safetensors":
        assert first.read_bytes() == second.read_bytes()


def test_a_joint_model_goes_round(tiny_run, tmp_path, capsys):
    path, run = tmp_path / "joint.safetensors", tmp_path / "run"
    assert export(tiny_run, path, "native-mmdit") == 0
    assert bring(path, run, config=CONFIG) == 0
    assert digest({"": weights(run, "student")}) == digest({"": weights(tiny_run, "teacher")})
    assert main(["generate", "audio", "--run", str(run), "--prompt", "notes C E G"]) == 0
    assert "kind native-mmdit" in capsys.readouterr().out


def test_an_imported_run_generates_what_the_original_does(sit_run, released, tmp_path):
    run, pictures = tmp_path / "run", []
    assert bring(released, run) == 0
    for folder in (sit_run, run):
        out = tmp_path / folder.parent.name
        assert main(["generate", "image", "--run", str(folder), "--class", "red circle", "--out", str(out)]) == 0
        pictures += sorted(out.glob("0000-*.png"))
    assert len(pictures) == 2
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_training_goes_on_from_imported_weights(released, tmp_path):
    run, rate = tmp_path / "run", 1e-4
    settings = ("training.steps=1", f"training.optimizer.lr={rate}")
    assert bring(released, run, *settings) == 0
    before = weights(run, "student")
    assert train(run, *settings, config=SIT) == 0
    assert published(run) == [0, 1]
    assert [entry["step"] for entry in read_lines(run / "metrics.jsonl")] == [1]
    after = weights(run, "student")
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert 0 < moved <= 1.01 * rate  # AdamW's first step moves no weight by more than the learning rate


def test_another_configuration_does_not_go_on_from_them(released, tmp_path, capsys):
    run = tmp_path / "run"
    assert bring(released, run) == 0
    assert train(run, "seed=4", config=SIT) == 2
    assert "seed: 3 when the run was started, 4 now" in capsys.readouterr().err


def test_parts_left_out_and_parts_made_fresh(sit_run, tmp_path, capsys):
    path = tmp_path / "sit.pt"
    assert export(sit_run, path, "sit") == 2
    assert "projector does not belong" in capsys.readouterr().err
    assert export(sit_run, path, "sit", "--drop", "projector") == 0
    assert bring(path, tmp_path / "refused") == 2
    assert "4 missing: projector.linear1.weight" in capsys.readouterr().err
    assert bring(path, tmp_path / "plain", "method=flow_matching") == 0
    assert bring(path, tmp_path / "tuned", "--fresh", "projector") == 0
    assert train(tmp_path / "plain", "method=flow_matching", config=SIT) == 0
    assert train(tmp_path / "tuned", config=SIT) == 0
    teacher = weights(sit_run, "teacher")
    start = CheckpointStore(tmp_path / "tuned" / "checkpoints").load_weights(0, "student")
    changed = {name.split(".")[0] for name, value in start.items() if not torch.equal(value, teacher[name])}
    assert changed == {"projector"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["trunk.sit.depth=4"], "10 missing: blocks.3.attn.qkv.weight"),
        (["trunk.sit.depth=4"], "depth 4, the file has 3"),
        (["--kind", "repa"], "not of kind 'repa': projectors is missing"),
        (["--drop", "projectors"], "'projectors' is no part of"),
        (["--labels", "absent.txt"], "absent.txt cannot be read"),
        (["condition.kind=text", "--labels", "absent.txt"], "--labels: not read with condition.kind 'text'"),
    ],
)
def test_what_does_not_fit_leaves_no_run(released, tmp_path, capsys, more, message):
    assert bring(released, tmp_path / "run", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_refused(sit_run, released, capsys):
    before = published(sit_run)
    assert bring(released, sit_run) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert published(sit_run) == before


def test_class_names_from_a_file(released, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(CLASSES)) + "\n")
    run = tmp_path / "run"
    assert bring(released, run, "--labels", str(names)) == 0
    assert CheckpointStore(run / "checkpoints").extra(0)["labels"][5] == "thing 5"
    assert main(["generate", "image", "--run", str(run), "--class", "thing 5"]) == 0
    capsys.readouterr()
    for text, message in (("a\n\nb", "names.txt:2 is empty"), ("a\nb\na", "'a' is on line 1 and on line 3")):
        names.write_text(text)
        assert bring(released, tmp_path / "other", "--labels", str(names)) == 2
        assert message in capsys.readouterr().err


def test_without_the_data(released, tmp_path, capsys, monkeypatch):
    """The classes are numbers; the whitening has to be published."""
    config = tmp_path / "config.yaml"
    config.write_text(SIT.read_text().replace("{size: 8, count: 60}", "{kind: folder, path: nowhere, captions: none}"))
    assert bring(released, tmp_path / "run", config=config) == 2
    shown = capsys.readouterr().err
    assert "modalities.image: its autoencoder has no published whitening" in shown
    assert "nowhere" in shown

    statistics = Whitening(torch.full((48,), 0.1), torch.full((48,), 0.5))
    monkeypatch.setattr(AutoencoderAdapter, "whitening", statistics)
    assert bring(released, tmp_path / "run", config=config) == 0
    assert f"{CLASSES} classes, '0' to '{CLASSES - 1}': numbers" in capsys.readouterr().out
    # What is published with the weights of an autoencoder stays with them.
    assert CheckpointStore(tmp_path / "run" / "checkpoints").extra(0)["whitening"] == {}
    assert main(["generate", "image", "--run", str(tmp_path / "run"), "--class", "7"]) == 0


def test_an_imported_run_can_be_inspected(released, tmp_path, capsys):
    assert bring(released, tmp_path / "run") == 0
    assert main(["inspect", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "checkpoint 0: intact" in shown
    assert "0 of 4 published" in shown
    assert main(["inspect", str(tmp_path / "run"), "--digest"]) == 0
    (teacher,) = digest({"": weights(tmp_path / "run", "teacher")}).values()
    assert capsys.readouterr().out.splitlines() == ["step 0", f"student {teacher}", f"teacher {teacher}"]
