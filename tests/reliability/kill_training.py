"""Kill real training runs at random moments, start them again, and compare them with an undisturbed one.

Each run is `selfflow train` in a child of its own, forked from one process that has imported torch and never uses it
(importing it anew would take most of the time). Children are killed from outside, wherever they happen to be.

    python -m tests.reliability.kill_training FOLDER CONFIG SEED SIGNAL TIMES [key=value ...]

SIGNAL is SIGKILL, SIGTERM or SIGINT; the latter two go to the whole process group, as a terminal sends Ctrl-C. After
TIMES interruptions the run is left alone. Prints one JSON line: the exit status and newest checkpoint of every start,
and what FOLDER/cut and FOLDER/whole hold in the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

import torch

import configs.build  # noqa: F401 - imported before the fork, not by every child
from core.training.records import read_lines
from tests.tools.tiny import published, result, train

PATIENCE = 120.0  # seconds that a start may take


def start(run: Path, config: Path, overrides: list[str]) -> int:
    """The process id of a child that trains, leader of a process group of its own."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            torch.set_num_threads(1)
            code = train(run, *overrides, config=config)
        finally:
            os._exit(code)
    return child


def interrupt(child: int, number: int, delay: float) -> int:
    """Wait for `delay` seconds, send the signal if the child still runs, and return its wait status."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    if number == signal.SIGKILL:
        os.kill(child, number)
    else:
        os.killpg(child, number)
    return os.waitpid(child, 0)[1]


def wait_for_checkpoints(run: Path, child: int, more: int) -> None:
    """Until the child has published `more` checkpoints, or has ended."""
    known, wanted = set(published(run)), set()
    deadline = time.monotonic() + PATIENCE
    while len(wanted) < more and time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        wanted |= set(published(run)) - known
        time.sleep(0.002)


def experiment(folder: Path, config: Path, seed: int, number: int, times: int, overrides: list[str]) -> dict:
    draw = random.Random(seed)
    whole = os.waitpid(start(folder / "whole", config, overrides), 0)[1]
    if whole != 0:
        return {"whole": whole}
    step_seconds = statistics.median(entry["seconds"] for entry in read_lines(folder / "whole" / "timings.jsonl"))

    starts, cut = [], folder / "cut"
    for _ in range(times):
        child = start(cut, config, overrides)
        # Killed while it starts, or up to four steps behind a checkpoint. Stopped only while it trains: before its
        # first step, a run does not catch signals.
        least = 0 if number == signal.SIGKILL else 1
        wait_for_checkpoints(cut, child, draw.randint(least, 2))
        status = interrupt(child, number, draw.uniform(0, 4 * step_seconds))
        starts.append([status, max(published(cut), default=0)])
    status = os.waitpid(start(cut, config, overrides), 0)[1]
    starts.append([status, max(published(cut), default=0)])
    return {"whole": whole, "starts": starts, "equal": result(cut) == result(folder / "whole")}


if __name__ == "__main__":
    where, settings, seed, name, times, *rest = sys.argv[1:]
    sent = signal.Signals[name]
    print(json.dumps(experiment(Path(where), Path(settings), int(seed), sent, int(times), rest)))
