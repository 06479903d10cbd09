"""The run folder: what it says, and that an interrupted run's metrics equal a whole one's byte for byte."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.training import records
from core.training.config import read_plain
from core.training.records import RunFolder, read_lines
from core.training.trackers import LoggingConfig, Trackers

CONFIG = {"seed": 0, "training": {"lr": 1e-4, "steps": 10}, "logging": {"wandb": "off", "every": 1}}
DATA = {"image": "abc"}


def open_run(path, config=CONFIG, data=DATA, free=frozenset()):
    return RunFolder.open(path, config, data, set(free))


def metrics_of(step: int) -> dict:
    return {"stream": "image", "loss": 1 / (step + 0.1), "lr": 1e-4, "step": step}


def test_an_interrupted_run_has_the_same_metrics_as_a_whole_one(tmp_path):
    whole = open_run(tmp_path / "whole")
    for step in range(1, 11):
        whole.write_metrics(metrics_of(step))
    whole.close()

    first = open_run(tmp_path / "cut")
    first.truncate(0)
    for step in range(1, 8):
        first.write_metrics(metrics_of(step))
        first.write_timing(step, seconds=0.1, waited=0.01)
        if step == 5:
            first.flush()  # and here checkpoint 5 is published
    first.flush()
    for name in ("metrics.jsonl", "timings.jsonl"):
        with (tmp_path / "cut" / name).open("a") as file:
            file.write('{"step": 8, "lo')  # the process is killed in the middle of a line

    resumed = open_run(tmp_path / "cut")
    resumed.truncate(5)
    for step in range(6, 11):
        resumed.write_metrics(metrics_of(step))
        resumed.write_timing(step, seconds=0.1)
    resumed.close()
    got, want = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cut", "whole"))
    assert got == want
    assert [entry["step"] for entry in read_lines(tmp_path / "cut" / "timings.jsonl")] == [*range(1, 8), *range(6, 11)]


def test_lines_are_durable_after_flush_and_only_then(tmp_path):
    """A child writes, flushes, writes again and is killed by its own hand: the flushed lines are there."""
    program = f"""
import os, signal
from pathlib import Path
from core.training.records import RunFolder
folder = RunFolder.open(Path({str(tmp_path / "run")!r}), {{}}, {{}}, set())
folder.write_metrics({{"step": 1, "loss": 0.5}})
folder.flush()
folder.write_metrics({{"step": 2, "loss": 0.25}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(records.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == -9
    assert read_lines(tmp_path / "run" / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_lines_become_visible_without_a_flush_after_a_while(tmp_path, monkeypatch):
    folder = open_run(tmp_path)
    folder.write_metrics(metrics_of(1))
    assert read_lines(tmp_path / "metrics.jsonl") == []
    monkeypatch.setattr(records, "FLUSH_SECONDS", -1.0)
    folder.write_metrics(metrics_of(2))
    assert [entry["step"] for entry in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
    folder.close()


@pytest.mark.parametrize("tail", [b'{"step": 3', b"\x00\xff", b"[1]\n", b'{"step": 3}', b"\n"])
def test_reading_stops_at_the_first_line_that_is_not_whole(tail, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert read_lines(tmp_path / "absent") == []
    open_run(tmp_path).truncate(2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_the_folder_explains_itself_and_notes_every_start(tmp_path):
    open_run(tmp_path / "a" / "run")
    open_run(tmp_path / "a" / "run")
    run = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert read_plain(tmp_path / "a" / "run" / "config.yaml") == CONFIG
    assert run["data"] == DATA
    assert len(run["starts"]) == 2
    assert set(run["starts"][0]["versions"]) == {"python", *records.PACKAGES}
    assert run["starts"][0]["command"] == sys.argv
    assert not list((tmp_path / "a" / "run").glob(".*"))


def test_the_commit_is_noted_in_a_checkout_and_left_out_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "core" / "training" / "records.py"))
    assert records.commit() == {}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    try:
        subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert records.commit() == {}  # no commit yet
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=tmp_path, check=True)
    clean = records.commit()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert records.commit() == clean | {"dirty": True}
    monkeypatch.setenv("PATH", "")
    assert records.commit() == {}


def test_a_changed_run_is_refused_once_it_has_a_checkpoint(tmp_path):
    open_run(tmp_path)
    changed = CONFIG | {"seed": 1, "training": {"lr": 1e-4, "steps": 20}}
    open_run(tmp_path, CONFIG | {"seed": 2})  # nothing was trained yet
    open_run(tmp_path)
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    with pytest.raises(ConfigError, match="seed: 0 when the run was started, 1 now") as caught:
        open_run(tmp_path, changed, free={"training.steps"})
    assert "training.steps" not in str(caught.value)
    with pytest.raises(ConfigError, match="data of image: abc when the run was started, abd now"):
        open_run(tmp_path, data={"image": "abd"})
    assert read_plain(tmp_path / "config.yaml") == CONFIG  # a refused start leaves the folder as it was
    open_run(tmp_path, changed, free={"training", "seed"})
    assert read_plain(tmp_path / "config.yaml") == changed


def test_a_run_that_is_a_file_or_has_a_broken_record_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        open_run(tmp_path / "file")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json: not valid JSON"):
        open_run(tmp_path)


def test_logging_settings(monkeypatch):
    assert LoggingConfig().problems() == []
    assert LoggingConfig(wandb="of", every=0).problems() == [
        "every: 0 must be at least 1",
        "wandb: 'of' is not one of off, offline, online",
    ]
    monkeypatch.setattr("core.training.trackers.find_spec", lambda name: None)
    missing = LoggingConfig(wandb="offline", tensorboard=True).problems()
    assert missing == [
        f"{setting} needs the package {package}, which is not installed: pip install -e '.[log]'. "
        "metrics.jsonl has everything without it"
        for setting, package in (("wandb: 'offline'", "wandb"), ("tensorboard: true", "tensorboard"))
    ]


def test_a_tracker_whose_package_is_missing_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("core.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logging\.wandb: 'offline' needs the package wandb, .*: pip install"):
        Trackers(LoggingConfig(wandb="offline"), tmp_path, {}, "id")


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed (extra: log)")
def test_tensorboard_gets_every_nth_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = open_run(tmp_path, CONFIG | {"logging": {"tensorboard": True, "every": 3}})
    for step in range(1, 8):
        folder.write_metrics(metrics_of(step))
    folder.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert curves.Tags()["scalars"] == ["image/loss", "image/lr"]
    assert [(event.step, event.value) for event in curves.Scalars("image/loss")] == [
        (step, pytest.approx(1 / (step + 0.1))) for step in (3, 6)
    ]


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed (extra: log)")
def test_wandb_offline_writes_into_the_run_folder(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = open_run(tmp_path, CONFIG | {"logging": {"wandb": "offline"}})
    folder.write_metrics(metrics_of(1))
    folder.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert json.loads((tmp_path / "run.json").read_text())["id"] in stored.name
    deadline = time.monotonic() + 30  # wandb's own process may write the file shortly after `finish` returns
    while b"image/loss" not in stored.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
