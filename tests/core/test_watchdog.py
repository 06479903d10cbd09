"""A run that hangs: its stacks, its exit code, and that nothing of Python is needed for either."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.training.flight_recorder import record_exchanges, write_exchanges_to
from core.training.watchdog import Watchdog, WatchdogConfig
from tests.thinned import slow

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread ends the process")

HANGS = """
import ctypes, sys, time
from pathlib import Path
from core.training import watchdog
watchdog._GRACE = 0.5

def deadlock():
    ctypes.{how}(None).sleep(30)

late = lambda: print("late", flush=True)
with watchdog.Watchdog(watchdog.WatchdogConfig({limits}), Path(sys.argv[1]), late, "To go on: again") as dog:
    {before}
    deadlock()
"""


def hang(folder: Path, how: str, limits: str, before: str) -> tuple[subprocess.CompletedProcess, float]:
    started = time.monotonic()
    program = HANGS.format(how=how, limits=limits, before=before)
    command = [sys.executable, "-c", program, str(folder / "stacks" / "rank-0.txt")]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


@LINUX
@pytest.mark.parametrize(
    ("how", "limits", "before"),
    [
        ("PyDLL", "start=100, step=1", "dog.step('image'); dog.step('image')"),  # holds Python's lock for ever
        slow(("CDLL", "start=1, step=100", "pass")),
        slow(("CDLL", "start=1, step=100", "dog.step('image')")),  # the first step of a stream, with its compilation
        slow(("CDLL", "start=100, step=1", "dog.step()")),  # waiting for data
    ],
)
def test_a_run_that_hangs_leaves_its_stacks_and_exit_code_75(how, limits, before, tmp_path):
    """Broken: faulthandler alone exits with 1; a thread alone never runs while the lock is held."""
    done, seconds = hang(tmp_path, how, limits, before)
    assert done.returncode == 75, done.stderr
    assert seconds < 25
    assert "hung: no progress for longer than training.watchdog" in done.stderr
    assert "To go on: again" in done.stderr
    assert "deadlock" in (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert done.stdout == ("late\n" if how == "CDLL" else "")


def test_progress_keeps_it_quiet_and_nothing_is_left(tmp_path):
    file = tmp_path / "stacks" / "rank-0.txt"
    with Watchdog(WatchdogConfig(start=2.0, step=2.0), file, lambda: pytest.fail("late")) as dog:
        dog.step("image")
        for _ in range(16):
            time.sleep(0.15)
            dog.step("image")
    assert not file.parent.exists()


def test_without_limits_it_does_nothing(tmp_path):
    with Watchdog(WatchdogConfig(0, 0), tmp_path / "stacks" / "rank-0.txt", lambda: None) as dog:
        dog.step("image")
        assert not (tmp_path / "stacks").exists()


def test_limits_are_checked():
    assert WatchdogConfig(step=-1).problems() == ["step: -1 must not be negative"]
    assert not WatchdogConfig(0, 0).problems()


def test_the_flight_recorder_goes_into_the_run_and_keeps_what_is_set(tmp_path, monkeypatch):
    names = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT")
    for name in (*names, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    record_exchanges()
    write_exchanges_to(tmp_path)
    assert [os.environ[name] for name in names] == ["7", f"{tmp_path}/nccl-rank-", "1"]
