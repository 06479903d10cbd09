"""What the machine does to a run: one line, exit code 75, the last checkpoint, the command to go on; no traceback."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from core.training import jsonl as lines
from core.training import records, trackers
from core.training.accidents import describe
from core.training.jsonl import LineWriter, read_lines
from core.training.quarantine import Quarantine
from core.training.say import Outliving
from core.training.trainer import Trainer
from tests.tools.tiny import CONFIG, STEPS, published, result, train
from tools.cli import main

ROOT = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, "No space left on device")


def told(message: str, reason: str) -> list[str]:
    """The arguments of the command that an accident's message ends with."""
    assert "Traceback" not in message
    assert reason in message
    (line,) = [line for line in message.splitlines() if "selfflow train" in line]
    return shlex.split(line.partition(": ")[2])[1:]


def fill_disk(monkeypatch, after: int) -> None:
    """Every write to a log fails, and cuts its last line in two, once so many were made."""
    plain, made = os.write, []

    def write(descriptor, data):
        made.append(1)
        if len(made) == after:
            return plain(descriptor, data[: len(data) // 2])
        if len(made) > after:
            raise FULL
        return plain(descriptor, data)

    monkeypatch.setattr(lines.os, "write", write)


def test_a_full_disk_under_the_logs_is_one_line_and_the_printed_command_goes_on(
    tiny_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(records, "FLUSH_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        fill_disk(patch, 6)
        assert train(tmp_path, "training.save_every=2") == 75
    arguments = told(capsys.readouterr().err, "No space left on device; free some space")
    assert published(tmp_path)[-1] == 2
    assert main(arguments) == 0
    assert result(tmp_path) == result(tiny_run)


def test_a_disk_that_is_full_for_a_while_loses_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "FLUSH_SECONDS", -1.0)
    plain, made = os.write, []

    def write(descriptor, data):
        made.append(1)
        if 3 <= len(made) <= 5:
            if len(made) == 3:
                return plain(descriptor, data[:7])
            raise FULL
        return plain(descriptor, data)

    monkeypatch.setattr(lines.os, "write", write)
    assert train(tmp_path) == 0
    assert "its lines wait in memory" in capsys.readouterr().err
    assert result(tmp_path) == result(tiny_run)


def test_a_full_disk_at_the_start_leaves_the_run_as_it_was(tiny_run, tmp_path, monkeypatch, capsys):
    def full(path, text):
        path.write_text(text[:20])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    assert train(tmp_path, "training.steps=2") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_durably", full)
        assert train(tmp_path, "training.steps=4", "--change", "training.optimizer.lr=1") == 75
    message = capsys.readouterr().err
    told(message, "No space left on device")
    assert "The last checkpoint is of step 2" in message
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert [path for path in before if before[path] != after[path] and path.name != "run.lock"] == []


def test_a_real_limit_of_file_sizes_is_one_line(tmp_path):
    """The kernel refuses to let metrics.jsonl grow; weights are written before and behind it without success."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "from tools.cli import main\n"
        f"sys.exit(main(['train', {str(CONFIG)!r}, 'run={tmp_path}/run', 'training.save_every=1']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 75, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "could not be written" in done.stderr
    assert "There is no checkpoint yet. To start again: selfflow train" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path):
    command = [sys.executable, "-m", "tools.cli", "train", str(CONFIG), f"run={tmp_path}", "training.steps=2"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=full, check=False, timeout=250)
    assert published(tmp_path) == [2]
    assert done.returncode == 75  # the work is done; its last line could not be told


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    def refuse(path, mode="r", *rest, **more):
        if "run.lock" in str(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return plain(path, mode, *rest, **more)

    plain = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    assert train(tmp_path / "run") == 75
    told(capsys.readouterr().err, "Read-only file system; it was mounted, or has become, read-only")


def test_a_run_folder_that_goes_away_while_it_trains(tmp_path, monkeypatch, capsys):
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step == 4:
            (tmp_path / "run").rename(tmp_path / "moved")
        return plain(self, step, microbatches)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert train(tmp_path / "run") == 75
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "the run folder is gone" in message
    assert published(tmp_path / "moved") == [3]
    assert not (tmp_path / "run").exists()  # nothing is begun in its place


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_data_worker(tiny_run, tmp_path, monkeypatch, capsys):
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step == 4:
            for child in torch.multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(2)  # torch hears of it in this thread, wherever it is
        return plain(self, step, microbatches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert train(tmp_path, "training.workers=1") == 75
    message = capsys.readouterr().err
    arguments = told(message, "a data worker (process ")
    assert "killed by signal: Killed" in message
    assert "fewer training.workers" in message
    assert "The last checkpoint is of step 3" in message
    assert main(arguments) == 0
    assert result(tmp_path) == result(tiny_run)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "a: Disk quota exceeded; free some of your quota"),
        (OSError(errno.EACCES, "Permission denied", b"b"), "b: Permission denied; this user must be allowed"),
        (OSError("no number"), None),
        (MemoryError(), "out of memory"),
        (RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly"), "(process 5, 6) exited unexpectedly"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. It is possible"), "/dev/shm"),
        (RuntimeError("shape mismatch"), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory: use smaller"),
    ],
)
def test_accidents_are_told_from_mistakes(error, expected):
    found = describe(error)
    assert found is None if expected is None else expected in found


def test_lines_go_on_where_a_failed_write_stopped(tmp_path, monkeypatch):
    file, plain = LineWriter(tmp_path / "a.jsonl"), os.write
    file.add({"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(
            lines.os, "write", lambda descriptor, data: plain(descriptor, data[:3]) if len(data) > 5 else fail()
        )

        def fail():
            raise FULL

        with pytest.raises(OSError, match="No space"):
            file.sync()
    assert read_lines(tmp_path / "a.jsonl") == []
    file.add({"a": 2})
    file.sync()
    file.close()
    assert read_lines(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


def test_the_quarantine_waits_for_space(tmp_path, monkeypatch, capsys):
    from core.training.loader import Rejected

    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(lines.os, "write", lambda *_: (_ for _ in ()).throw(FULL))
        for key in ("a", "b"):
            quarantine.add([Rejected("image", key, key, "bad", 0, 1)])
    assert capsys.readouterr().err.count("cannot be written") == 1
    quarantine.add([Rejected("image", "c", "c", "bad", 0, 1)])
    quarantine.close()
    assert [entry["key"] for entry in read_lines(path)] == ["a", "b", "c"]


def test_a_stream_that_fails_is_no_reason_to_stop():
    class Broken:
        encoding = "utf-8"

        def write(self, text):
            raise FULL

        def flush(self):
            raise FULL

    stream = Outliving(Broken())
    assert stream.write("abc") == 3
    stream.flush()
    assert stream.encoding == "utf-8"


class FakeWandb:
    """In place of the package: refuses the login, or fails after some steps."""

    __spec__ = ModuleSpec("wandb", None)

    def __init__(self, login: bool = True, after: int = 99):
        self.login, self.after, self.steps, self.ended = login, after, [], 0

    def init(self, **given):
        if not self.login:
            raise RuntimeError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")
        return self

    def log(self, values, step):
        if step > self.after:
            raise ConnectionError("Network is unreachable")
        self.steps.append(step)

    def finish(self):
        self.ended += 1
        raise TimeoutError("no network")


def test_a_refused_login_is_one_line_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(login=False))
    assert train(tmp_path, "logging.wandb=online") == 75
    message = capsys.readouterr().err
    told(message, "wandb could not be started: api_key not configured")
    assert "logging.wandb=off" in message
    assert train(tmp_path, "training.steps=1") == 0  # the folder is not held, and nothing was trained


def test_a_tracker_that_loses_its_network_is_left_out(tiny_run, tmp_path, monkeypatch, capsys):
    fake = FakeWandb(after=2)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert train(tmp_path, "logging.wandb=online") == 0
    message = capsys.readouterr().err
    assert "warning: wandb failed at step 3 and gets no more: Network is unreachable" in message
    assert "Traceback" not in message
    assert (fake.steps, fake.ended) == ([1, 2], 1)
    assert result(tmp_path) == result(tiny_run)


def test_wandb_gets_no_step_twice(tmp_path, monkeypatch):
    from tests.reliability.test_resume import stop_after

    fake = FakeWandb()
    fake.finish = lambda: None
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with monkeypatch.context() as patch:  # killed behind step 5; the last checkpoint is of step 3
        plain = Trainer.train_step
        patch.setattr(Trainer, "train_step", lambda self, n, m: plain(self, n, m) if n < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, "logging.wandb=offline")
    assert fake.steps == [1, 2, 3, 4, 5]
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert train(tmp_path, "logging.wandb=offline") == 75
    assert train(tmp_path, "logging.wandb=offline") == 0
    assert fake.steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed (extra: log)")
def test_tensorboard_shows_no_step_twice(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = Trainer.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, n, m: plain(self, n, m) if n < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, "logging.tensorboard=true")
    assert published(tmp_path) == [3]
    assert train(tmp_path, "logging.tensorboard=true") == 0
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = [event.step for tag in curves.Tags()["scalars"] if tag.endswith("/loss") for event in curves.Scalars(tag)]
    assert sorted(steps) == list(range(1, STEPS + 1))


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed (extra: log)")
def test_a_full_disk_under_tensorboard_leaves_it_out(tmp_path):
    """In a process of its own: its writing thread would print a traceback, and so would its file at exit."""
    code = (
        "import sys, errno\n"
        "from tensorboard.summary.writer import record_writer\n"
        "plain = record_writer.RecordWriter.write\n"
        "made = []\n"
        "def write(self, data):\n"
        "    made.append(1)\n"
        "    if len(made) > 9: raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    plain(self, data)\n"
        "record_writer.RecordWriter.write = write\n"
        "from tools.cli import main\n"
        f"sys.exit(main(['train', {str(CONFIG)!r}, 'run={tmp_path}/run', 'logging.tensorboard=true']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "warning: tensorboard failed at step" in done.stderr
    assert published(tmp_path / "run")[-1] == STEPS


def test_a_tracker_whose_failure_has_no_text_is_named():
    assert trackers.first_line(KeyError()) == "KeyError"
    assert trackers.first_line(ValueError("a.\nb")) == "a"
