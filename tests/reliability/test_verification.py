"""A checkpoint is verified once per process, and only the parts that are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.runs import aligned_pair, load_run
from core.errors import CheckpointError
from core.training import manifest
from core.training.checkpoint import CheckpointStore
from tests.reliability.kill_points import example_state, rewrite
from tests.reliability.test_store import PARTS, filled, flip
from tests.tools.tiny import published, train
from tools.cli import main

STATE = "state.json"


def files(*parts: str) -> set[str]:
    return {f"tensors/{part}/{name}" for part in parts for name in ("__0_0.distcp", ".metadata")}


@pytest.fixture
def hashed(monkeypatch) -> Iterator[Counter[str]]:
    """How often each file of a published checkpoint was read to its end and hashed."""
    counts: Counter[str] = Counter()
    plain = manifest.describe

    def describe(path: Path) -> dict:
        step = next(folder for folder in path.parents if "step-" in folder.name)
        if not step.name.startswith(".writing-"):
            counts[f"{int(step.name.removeprefix('step-'))}/{path.relative_to(step).as_posix()}"] += 1
        return plain(path)

    monkeypatch.setattr(manifest, "describe", describe)
    return counts


def of_step(step: int, *names: set[str]) -> dict[str, int]:
    return {f"{step}/{name}": 1 for name in set().union(*names)}


def test_a_resume_hashes_every_file_of_its_checkpoint_once_and_no_other(tmp_path, hashed):
    assert train(tmp_path, "training.steps=2", "training.save_every=1") == 0
    assert published(tmp_path) == [1, 2]
    hashed.clear()
    assert train(tmp_path, "training.steps=4", "training.save_every=1") == 0
    assert hashed == of_step(2, files(*PARTS), {STATE})
    hashed.clear()
    assert train(tmp_path, "training.steps=4") == 0  # finished already
    assert hashed == of_step(4, files(*PARTS), {STATE})


def test_generating_hashes_the_teacher_and_what_lies_beside_the_parts_alone(tiny_run, tmp_path, hashed):
    asked = ("--prompt", "a cat", "--out", str(tmp_path / "out"))
    assert main(["generate", "image", "--run", str(tiny_run), *asked]) == 0
    assert hashed == of_step(6, files("teacher"), {STATE})
    hashed.clear()
    loaded = load_run(tiny_run, weights="student")
    assert hashed == of_step(6, files("student"), {STATE})
    assert aligned_pair(loaded, "image") is not None  # the student, once more
    assert hashed == of_step(6, files("student"), {STATE})
    hashed.clear()
    loaded = load_run(tiny_run)
    assert aligned_pair(loaded, "image") is not None
    assert hashed == of_step(6, files("teacher", "student"), {STATE})


def test_starting_from_a_run_hashes_its_teacher_alone(tiny_run, tmp_path, hashed):
    assert train(tmp_path, "training.steps=1", "--init-from", str(tiny_run)) == 0
    assert {name: count for name, count in hashed.items() if name.startswith("6/")} == of_step(
        6, files("teacher"), {STATE}
    )


@pytest.mark.parametrize("part", PARTS)
def test_damage_in_a_part_that_is_not_read_does_not_matter(part, tmp_path):
    filled(tmp_path)
    flip(tmp_path / "step-00000020" / "tensors" / part / "__0_0.distcp", 0.5)
    messages: list[str] = []
    for other in PARTS:
        store = CheckpointStore(tmp_path, report=messages.append)
        assert store.latest((other,)) == (10 if other == part else 20)
        if other == part:
            with pytest.raises(CheckpointError, match=f"tensors/{part}/__0_0.distcp: its content differs"):
                store.load_weights(20, other)
        else:
            assert set(store.load_weights(20, other)) == {
                key.removeprefix(f"{other}/") for key in store.stored(20, (other,))
            }
        assert store.extra(20) == {"note": 20}
    assert len(messages) == 1
    assert CheckpointStore(tmp_path, report=messages.append).latest() == 10
    assert CheckpointStore(tmp_path).problem(
        20
    ) == f"tensors/{part}/__0_0.distcp: its content differs from what was " + ("written (checksum)")


def test_a_damaged_optimizer_is_nothing_to_generate_and_is_found_by_a_resume_and_by_inspect(tmp_path, capsys):
    assert train(tmp_path, "training.steps=2", "training.save_every=1") == 0
    flip(tmp_path / "checkpoints" / "step-00000002" / "tensors" / "optimizer" / "__0_0.distcp", 0.5)
    capsys.readouterr()
    assert load_run(tmp_path).step == 2
    assert "damaged" not in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 0
    assert "checkpoint 2: DAMAGED, tensors/optimizer/__0_0.distcp" in capsys.readouterr().out
    assert train(tmp_path, "training.steps=3") == 0
    message = capsys.readouterr().err
    assert message.count("step-00000002 is damaged and skipped: tensors/optimizer/__0_0.distcp") == 1
    assert published(tmp_path)[-1] == 3


def test_a_verified_file_that_goes_away_is_missed_and_one_that_is_written_anew_is_read_anew(tmp_path, hashed):
    store = filled(tmp_path)
    assert store.latest() == 20
    assert not hashed  # this process wrote it
    (tmp_path / "step-00000020" / STATE).unlink()
    with pytest.raises(CheckpointError, match=r"damaged: state\.json: missing"):
        store.extra(20)
    store.publish(20, example_state(21), {"note": 21})
    assert store.extra(20) == {"note": 21}
    hashed.clear()
    fresh = CheckpointStore(tmp_path)
    assert (fresh.latest(), fresh.latest(), fresh.latest(("teacher",))) == (20, 20, 20)
    fresh.load_weights(20)
    assert hashed == of_step(20, files(*PARTS), {STATE})


def test_streams_are_stored_in_the_order_of_the_caller(tmp_path):
    CheckpointStore(tmp_path).publish(1, example_state(1), {"z": 1, "a": {"y": 2, "b": 3}})
    extra = CheckpointStore(tmp_path).extra(1)
    assert (list(extra), list(extra["a"])) == (["z", "a"], ["y", "b"])


def test_a_run_of_an_older_version_is_refused_in_one_line(tmp_path, capsys):
    assert train(tmp_path, "training.steps=1") == 0
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("streams:", "modalities:"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(tmp_path, "training.steps=2") == 2
    message = capsys.readouterr().err
    assert "the run is of an older version of this project, with `modalities` in place of `streams`" in message
    assert len(message.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_an_older_version_is_refused_by_name(tmp_path, monkeypatch, capsys):
    assert train(tmp_path, "training.steps=1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "SCHEMA", 1)
        rewrite(tmp_path / "checkpoints" / "step-00000001", 1)
    for act in (lambda: train(tmp_path, "training.steps=2"), lambda: main(["inspect", str(tmp_path), "--digest"])):
        capsys.readouterr()
        assert act() == 2
        assert (
            "was written by another version of this project (manifest.json: schema 1, this" in capsys.readouterr().err
        )
    with pytest.raises(CheckpointError, match="another version of this project"):
        load_run(tmp_path)
