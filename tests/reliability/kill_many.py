"""Kill many runs at random moments, on one process and on two, and compare each with an undisturbed one.

    python -m tests.reliability.kill_many FOLDER KILLS SECONDS

Run after run is killed up to ten times and then left alone, until there were KILLS kills in at least 20 runs, or
SECONDS are over. Every second run has two processes, of which one or both are killed; every third one saves behind the
training. Prints a JSON line for each run and one for all: runs, kills, and runs in which a bit differs from a run that
nothing disturbed. All processes are forked from this one, which has imported torch and never uses it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from core.training import distributed
from core.training.checkpoint import CheckpointStore
from tests.scale.runs import build
from tests.tools.tiny import published, result

STEPS, MOST, PATIENCE = 16, 10, 60.0
SMALL = (
    "streams.video=null",
    "streams.audio=null",
    "streams.image.data.count=20",
    "trunk.mmdit.width=48",
    f"training.steps={STEPS}",
    "training.save_every=2",
)


def fork(run: Path, size: int, rank: int, meeting: Path, behind: bool) -> int:
    """The process id of a child that trains."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(run.with_suffix(f".{rank}.txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
        store = dist.FileStore(str(meeting), size)
        world = distributed.start(timedelta(seconds=PATIENCE), timedelta(seconds=PATIENCE), store)
        if CheckpointStore(run / "checkpoints").steps()[-1:] != [STEPS]:
            trainer = build(world, run, *SMALL, f"training.async_save={behind}".lower())
            code = 0 if trainer.fit() == "finished" else 75
    except BaseException:  # noqa: BLE001 - a child must not return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def start(run: Path, size: int, behind: bool) -> list[int]:
    meeting = run.with_suffix(".meeting")
    meeting.unlink(missing_ok=True)
    return [fork(run, size, rank, meeting, behind) for rank in range(size)]


def wait(children: list[int], seconds: float) -> list[int]:
    """Those that still run after so many seconds, or as soon as one has ended."""
    deadline, left = time.monotonic() + seconds, list(children)
    while len(left) == len(children) and left and time.monotonic() < deadline:
        left = [child for child in left if os.waitpid(child, os.WNOHANG)[0] == 0]
        time.sleep(0.003)
    return left


def end(children: list[int], patience: float = PATIENCE) -> None:
    """Wait for the others of a killed process; what hangs is killed, too."""
    deadline = time.monotonic() + patience
    left = list(children)
    while left:
        left = [child for child in left if os.waitpid(child, os.WNOHANG)[0] == 0]
        if time.monotonic() > deadline:
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.003)


def whole(folder: Path, size: int) -> float:
    """An undisturbed run; how long it took, in seconds."""
    started = time.monotonic()
    end(start(folder / f"whole-{size}", size, behind=False))
    assert published(folder / f"whole-{size}")[-1:] == [STEPS], (folder / f"whole-{size}.0.txt").read_text()
    return time.monotonic() - started


def tortured(run: Path, size: int, behind: bool, duration: float, draw: random.Random) -> int:
    """How often the run was killed before it was left alone."""
    kills = 0
    while kills < MOST and published(run)[-1:] != [STEPS]:
        children = start(run, size, behind)
        left = wait(children, draw.uniform(0.05, 0.9) * duration)
        if len(left) == size:
            for child in draw.choice([children, children[:1], children[-1:]]):
                os.kill(child, signal.SIGKILL)
            kills += 1
        end(left)
    end(start(run, size, behind))
    return kills


def main(folder: Path, wanted: int, seconds: float) -> dict[str, object]:
    began, draw = time.monotonic(), random.Random(0)
    durations = {size: whole(folder, size) for size in (1, 2)}
    expected = {size: result(folder / f"whole-{size}") for size in durations}
    runs, kills, different = 0, 0, []
    while (kills < wanted or runs < 20) and time.monotonic() - began < seconds:
        size, behind, run = 1 + runs % 2, runs % 3 == 2, folder / f"run-{runs}"
        killed = tortured(run, size, behind, durations[size], draw)
        same = published(run)[-1:] == [STEPS] and result(run) == expected[size]
        different += [] if same else [runs]
        print(json.dumps({"run": runs, "processes": size, "behind": behind, "kills": killed, "same": same}), flush=True)
        runs, kills = runs + 1, kills + killed
        if same:
            shutil.rmtree(run)
    return {"runs": runs, "kills": kills, "different": different, "seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    place, number, limit = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    print(json.dumps(main(Path(place), int(number), float(limit))))
