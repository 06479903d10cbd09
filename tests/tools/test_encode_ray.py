"""selfflow encode --engine ray: a worker is killed in the middle of a chunk, and the result has the same bytes.

Needs Ray (extra `ray`) beside the full environment; starting it takes ten seconds and half a gigabyte.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")

from tests.tools.test_encode_parts import CONFIG
from tools.cli import main


def encode(folder: Path, out: Path, *options: str) -> int:
    command = ["encode", str(folder / "config.yaml"), "--out", str(out), "--stream", "clips", "--workers", "0"]
    return main([*command, "--chunk", "3", *options])


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    # The manifest has the date; what a killed process left aside begins with a dot, until the next start removes it.
    return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json" and name[0] != "."}


def workers() -> list[int]:
    """Processes of Ray that make chunks."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::Worker.do"):
                found.append(int(place.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes of Ray in /proc")
def test_a_killed_worker_costs_nothing_but_time(tmp_path, monkeypatch):
    """[28] Fails without retries of tasks: the chunk of the killed worker is missing."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default, so that other work on the machine starves them
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert encode(tmp_path, tmp_path / "plain") == 0
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 200
        while not killed and time.monotonic() < deadline:
            for process in workers()[:1]:  # one that makes a chunk now
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    assert encode(tmp_path, tmp_path / "ray", "--engine", "ray", "--devices", "2") == 0
    thread.join()
    assert killed
    assert len(files(tmp_path / "plain" / "clips")) > 6
    assert files(tmp_path / "ray" / "clips") == files(tmp_path / "plain" / "clips")
