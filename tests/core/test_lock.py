"""One process at a time in a run folder, and nothing left behind by one that is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.training import lock
from core.training.lock import FolderLock

ROOT = Path(lock.__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from core.training.lock import FolderLock
held = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no POSIX locks")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_is_there(holder, tmp_path):
    with pytest.raises(ConfigError, match=f"in use by another process \\(process {holder.pid} on "):
        FolderLock(tmp_path)


def test_a_killed_process_leaves_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    FolderLock(tmp_path).release()
    FolderLock(tmp_path).release()


def test_a_file_system_without_locks_is_not_watched(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    FolderLock(tmp_path).release()
