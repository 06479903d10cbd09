"""A run that is killed, stopped or resumed ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.build import free_on_resume
from configs.load import load_config
from core.errors import ConfigError
from core.training import trainer as trainer_module
from core.training.checkpoint import CheckpointStore, digest
from core.training.config import differences, read_plain, refuse_changes, to_plain
from core.training.trainer import Trainer
from tests.modalities.making import image_bytes, numbered
from tests.thinned import slow, thinned
from tests.tools.tiny import CONFIG, STEPS, published, result, train

ROOT = Path(__file__).parents[2]
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def interrupted(folder: Path, seed: int, name: str, times: int, *overrides: str) -> dict:
    command = [sys.executable, "-m", "tests.reliability.kill_training"]
    done = subprocess.run(
        [*command, str(folder), str(CONFIG), str(seed), name, str(times), *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["whole"] == 0, done.stderr[-3000:]
    assert outcome["starts"][-1][0] == 0, done.stderr[-3000:]
    return outcome


@FORK
@pytest.mark.parametrize("workers", [slow(0), 1])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(workers, tmp_path):
    sizes = ("training.steps=16", "training.save_every=2", f"training.workers={workers}")
    outcome = interrupted(tmp_path, workers, "SIGKILL", 4, *sizes)
    assert outcome["equal"]
    killed = [status for status, _ in outcome["starts"] if status == signal.SIGKILL]
    assert len(killed) >= 3, outcome  # the moments were well chosen
    assert outcome["starts"][-1][1] == 16


@FORK
@pytest.mark.parametrize("kind", [slow("muon"), "adamw8bit"])
def test_a_killed_run_of_another_optimizer_with_averages_and_previews_ends_with_the_same_bits(kind, tmp_path):
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="8-bit AdamW needs bitsandbytes")
    sizes = ("training.steps=12", "training.save_every=3", f"training.optimizer.kind={kind}")
    watched = ("training.posthoc_ema.every=2", "training.preview.every=4", "training.preview.samples=1")
    val = ("streams.audio.val={seconds: 0.3, count: 6, seed: 1}", "training.validate.every=4")
    outcome = interrupted(tmp_path, 7, "SIGKILL", 3, *sizes, *watched, *val)
    assert outcome["equal"]
    for name in ("samples", "validation.jsonl"):
        assert contents(tmp_path / "cut" / name) == contents(tmp_path / "whole" / name)
        assert contents(tmp_path / "cut" / name)
    cut, whole = (CheckpointStore(tmp_path / name / "ema") for name in ("cut", "whole"))
    assert cut.steps() == whole.steps() == [2, 4, 6, 8, 10, 12]
    for step in whole.steps():
        one, other = (store.load_weights(step, "ema-0.05") for store in (cut, whole))
        assert digest({"ema": one}) == digest({"ema": other})


def contents(path: Path) -> dict[str, bytes]:
    """Name -> bytes of a file or a folder, which holds whole things only: no file or folder of a cut writer."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return {item.relative_to(path.parent).as_posix(): item.read_bytes() for item in files}


@FORK
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_random_kills(seed, tmp_path):
    sizes = ("training.steps=40", f"training.save_every={seed + 1}", f"training.workers={seed % 3}")
    assert interrupted(tmp_path, seed, "SIGKILL", 15, *sizes)["equal"]


@FORK
@pytest.mark.parametrize(("name", "workers"), [slow(("SIGTERM", 0)), ("SIGINT", 1)])
def test_a_run_asked_to_stop_publishes_and_leaves_and_continues_with_the_same_bits(name, workers, tmp_path):
    sizes = ("training.steps=40", "training.save_every=7", f"training.workers={workers}")
    outcome = interrupted(tmp_path, 1, name, 2, *sizes)
    assert outcome["equal"]
    *stopped, finished = outcome["starts"]
    assert [os.waitstatus_to_exitcode(status) for status, _ in stopped] == [75, 75]
    steps = [step for _, step in stopped]
    assert 0 < steps[0] < steps[1] < 40
    assert any(step % 7 for step in steps)  # a checkpoint that was not due
    assert finished[1] == 40


def stop_after(monkeypatch, step: int) -> None:
    """Send SIGTERM to this process during the given step."""
    plain = Trainer.train_step

    def train_step(self, number, microbatches):
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, number, microbatches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("step", [1, 4])
def test_a_stop_publishes_the_step_that_was_running(step, tiny_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert train(tmp_path) == 75
    assert f"stopped by SIGTERM after {step} of {STEPS} steps" in capsys.readouterr().out
    assert max(published(tmp_path)) == step
    assert train(tmp_path) == 0
    assert result(tmp_path) == result(tiny_run)


def test_the_comparison_sees_a_teacher_that_is_not_restored(tiny_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        train(tmp_path)

    def restore(store, step, student, teacher, optimizer, *rest):
        plain(store, step, student, teacher, optimizer, *rest)
        teacher.load_state_dict(student.state_dict())

    plain = trainer_module.restore
    monkeypatch.setattr(trainer_module, "restore", restore)
    assert train(tmp_path) == 0
    ours, whole = result(tmp_path), result(tiny_run)
    assert {name for name in ours if ours[name] != whole[name]} == {"student", "teacher", "optimizer", "metrics"}


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    assert train(tmp_path, "training.steps=2") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(tmp_path, "training.steps=2") == 0
    assert "already finished: all 2 steps are done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert train(tmp_path, "training.steps=2", "seed=9") == 2
    assert "seed: 3 when the run was started, 9 now" in capsys.readouterr().err


def test_a_run_may_be_made_longer_and_equals_a_long_one(tiny_run, tmp_path):
    assert train(tmp_path, "training.steps=4") == 0
    assert train(tmp_path) == 0
    assert result(tmp_path) == result(tiny_run)


def test_with_a_cooldown_the_length_is_fixed(tmp_path, capsys):
    cooldown = "training.optimizer.cooldown=1"
    assert train(tmp_path, "training.steps=2", cooldown) == 0
    assert train(tmp_path, "training.steps=4", cooldown) == 2
    assert "training.steps: 2 when the run was started, 4 now" in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["{schedule: cosine}", "{schedule: wsd, cooldown: 1}"])
def test_with_a_schedule_that_reads_the_length_it_is_fixed(schedule, tmp_path, capsys):
    settings = f"training.optimizer={schedule}"
    assert train(tmp_path, "training.steps=2", settings) == 0
    assert train(tmp_path, "training.steps=4", settings) == 2
    assert "training.steps: 2 when the run was started, 4 now" in capsys.readouterr().err


def test_data_may_move_but_not_change(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, pixels in enumerate(numbered(6, 8, 8)):
        (photos / f"{index}.png").write_bytes(image_bytes(pixels))
    data = ["streams.image.data.kind=folder", "streams.image.data.caption=grey"]
    alone = ["streams.video=null", "streams.audio=null", *data]
    assert train(tmp_path / "run", "training.steps=2", *alone, f"streams.image.data.path={photos}") == 0
    (tmp_path / "moved").mkdir()
    moved = photos.rename(tmp_path / "moved" / "photos")
    assert train(tmp_path / "run", "training.steps=3", *alone, f"streams.image.data.path={moved}") == 0
    (moved / "6.png").write_bytes(image_bytes(numbered(1, 8, 8)[0]))
    assert train(tmp_path / "run", "training.steps=4", *alone, f"streams.image.data.path={moved}") == 2
    assert "The records or their order have changed" in capsys.readouterr().err


def leaves(config: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


PLAIN = to_plain(load_config(CONFIG, ["run=folder"]))
FREE_LEAVES = {
    name
    for name in leaves(PLAIN)
    if name.startswith(("run", "logging.", "training.preview.", "training.validate.", "training.watchdog."))
    or (name.startswith("streams.") and name.split(".")[2] in ("sampling", "val", "evaluation"))
    or name.endswith((".data.path", ".data.cache", ".data.cache_limit"))
} | {
    f"training.{name}"
    for name in (
        "steps",
        "save_every",
        "keep",
        "keep_every",
        "device",
        "workers",
        "data_limit",
        "skip_steps",
        "stop_within",
        "compare_ranks_every",
        "accumulate",
        "replicas",
        "recompute",
        "async_save",
        "checkpoint_store",
    )
}


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    return [*value, 1] if isinstance(value, list) else {"new": 1} if isinstance(value, dict) else 7


def with_leaf(config: dict, name: str, value: object) -> dict:
    key, _, rest = name.partition(".")
    return config | {key: with_leaf(config[key], rest, value) if rest else value}


@pytest.mark.parametrize("name", thinned(leaves(PLAIN), 8))
def test_a_change_of_any_setting_that_touches_numbers_is_refused_by_name(name):
    free = free_on_resume(load_config(CONFIG, ["run=folder"]))
    other = with_leaf(PLAIN, name, changed(leaves(PLAIN)[name]))
    assert [key for key, _, _ in differences(PLAIN, other)]
    if name in FREE_LEAVES:
        refuse_changes(PLAIN, other, free)
    else:
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            refuse_changes(PLAIN, other, free)


def test_the_settings_of_a_run_folder_equal_those_it_was_started_with(tiny_run):
    assert differences(read_plain(tiny_run / "config.yaml"), to_plain(load_config(CONFIG, [f"run={tiny_run}"]))) == []


def test_a_resume_with_other_settings_names_all_of_them_and_one_with_free_ones_goes_on(tmp_path, capsys):
    assert train(tmp_path, "training.steps=2") == 0
    before = (tmp_path / "config.yaml").read_bytes()
    changes = ("training.optimizer.lr=1e-3", "streams.image.mask_ratio=0.3", "alignment.ema_teacher.weight=0.5")
    assert train(tmp_path, "training.steps=3", *changes) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for change in changes:
        assert change.partition("=")[0] + ": " in message
    assert (tmp_path / "config.yaml").read_bytes() == before
    free = ("training.workers=1", "training.save_every=1", "streams.image.sampling.steps=9")
    assert train(tmp_path, "training.steps=3", *free) == 0
    assert max(published(tmp_path)) == 3


def test_a_resume_on_other_data_is_refused(tmp_path, capsys):
    from tests.modalities.making import image_bytes, numbered

    photos = tmp_path / "data" / "grey"
    photos.mkdir(parents=True)
    for index, pixels in enumerate(numbered(6, 8, 8)):
        (photos / f"{index}.png").write_bytes(image_bytes(pixels))
    config = tmp_path / "photos.yaml"
    config.write_text(
        "streams: {image: {batch: 2, data: {kind: folder, path: data, captions: label}, media: {size: [8]}}}\n"
        "trunk: {mmdit: {size: tiny, width: 48, heads: 2, double_blocks: 1, single_blocks: 2}}\n"
        "training: {steps: 2, device: cpu}\n"
    )
    assert train(tmp_path / "run", config=config) == 0
    (photos / "6.png").write_bytes(image_bytes(numbered(7, 8, 8)[6]))
    assert train(tmp_path / "run", "training.steps=3", config=config) == 2
    assert "data of image: " in capsys.readouterr().err
