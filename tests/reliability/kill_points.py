"""Cut one checkpoint save short at each of its durable calls, and look at what is left.

A durable call is one that changes the disk: open for writing, fsync, mkdir, rename, remove, rmdir. They are seen by an
audit hook (and by wrapping os.fsync, which raises no audit event), so it does not matter who makes them: the store,
shutil or torch. Hooks cannot be removed, and torch's threads do not survive a fork, so everything runs in one process
of its own, which imports torch once and forks a child for each point.

    python -m tests.reliability.kill_points STORE MODE FOLDER

STORE is a name in STORES, MODE is `kill` (SIGKILL before the n-th call) or `full` (the n-th call raises ENOSPC). Prints
one JSON line for each point: the call, the step that `latest` then gives, whether it is read back bit for bit and the
next save works (`intact`), and how the child ended. The last line is the undisturbed save.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from core.errors import CheckpointError
from core.training.checkpoint import CheckpointStore, digest, flatten
from core.training.manifest import describe, files_of, write_manifest

EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def example_state(step: int) -> dict[str, dict]:
    """A small state that differs at every step: several tensors, dtypes and nesting levels."""
    draw = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(5, 3, generator=draw), "a.bias": torch.randn(5, generator=draw).bfloat16()}
    moments = {"a.weight": {"step": torch.tensor(float(step)), "exp_avg": torch.randn(5, 3, generator=draw)}}
    teacher = {name: torch.randn(value.shape, generator=draw).to(value.dtype) for name, value in weights.items()}
    return {"student": weights, "teacher": teacher, "optimizer": moments}


class PrunesFirst(CheckpointStore):
    """Broken on purpose: makes room before the new checkpoint is there."""

    def publish(self, step: int, state: dict, extra: dict) -> Path:
        for old in self.steps():
            shutil.rmtree(self.folder(old))
        return super().publish(step, state, extra)


class WritesInPlace(CheckpointStore):
    """Broken on purpose: writes into the final folder and takes the largest number for the newest checkpoint."""

    def publish(self, step: int, state: dict, extra: dict) -> Path:
        final, flat = self.folder(step), {part: flatten(own, f"{part}/") for part, own in state.items()}
        self._begin(final, final, list(flat), step)
        self._finish(final, final, step, extra, self._write(final, flat))
        return final

    def latest(self) -> int | None:
        return max(self.steps(), default=None)


STORES = {"store": CheckpointStore, "prunes_first": PrunesFirst, "writes_in_place": WritesInPlace}


def watch(root: Path, act: Callable[[int, str], None]) -> None:
    """Call `act(number, name)` before each durable call below `root`, numbered from 1. For ever: fork first."""
    count = 0
    synced = os.fsync

    def meet(name: str) -> None:
        nonlocal count
        count += 1
        act(count, name)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(root)):
                meet(f"open {Path(path).name}")
        elif event in EVENTS:
            meet(f"{event} {Path(os.fsdecode(arguments[0])).name}")

    def fsync(descriptor: int) -> None:
        meet("os.fsync")
        synced(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def rewrite(folder: Path, step: int) -> None:
    """A manifest of all files that are there."""
    write_manifest(folder, step, {name: describe(path) for name, path in files_of(folder).items()})


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked child; its wait status: 0, the exit code of a failure, or the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def judge(store: CheckpointStore, digests: dict[int, dict]) -> tuple[int | None, bool]:
    """(step, whether exactly the state of that step is read back)."""
    step = store.latest()
    if step is None:
        return None, False
    into = {part: _zeros(value) for part, value in example_state(step).items()}
    try:
        store.load(step, into)
        return step, digest(into) == digests[step] and store.extra(step) == {"note": step}
    except Exception:  # noqa: BLE001 - a broken store may fail in any way; that is what is measured
        return step, False


def _zeros(value):
    return {k: _zeros(v) for k, v in value.items()} if isinstance(value, dict) else torch.zeros_like(value)


def run(kind: type[CheckpointStore], mode: str, folder: Path) -> list[dict]:
    """Save steps 10 and 20 whole, then cut the save of step 30 short at every point, each on a fresh copy."""
    torch.set_num_threads(1)
    digests = {step: digest(example_state(step)) for step in (10, 20, 30, 40)}
    template = folder / "template"
    for step in (10, 20):
        kind(template, keep=2).publish(step, example_state(step), {"note": step})

    results, point = [], 0
    while True:
        point += 1
        root, trace = folder / f"{mode}-{point}", folder / f"{mode}-{point}.trace"
        shutil.copytree(template, root)
        noted = os.open(trace, os.O_CREAT | os.O_WRONLY)

        def act(number: int, name: str, point: int = point, noted: int = noted) -> None:
            if number == point:
                os.write(noted, name.encode())
                if mode == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, "No space left on device")

        def save(root: Path = root, act: Callable = act) -> None:
            store = kind(root, keep=2, report=lambda line: None)
            watch(root, act)
            try:
                store.publish(30, example_state(30), {"note": 30})
            except CheckpointError as error:
                if "No space left" not in str(error):
                    raise
                if list(root.glob(".writing-*")):
                    raise AssertionError("the failed save left its folder behind") from error

        status = in_child(save)
        os.close(noted)
        call = trace.read_text()
        messages: list[str] = []
        latest, intact = judge(kind(root, keep=2, report=messages.append), digests)
        if intact:  # and life goes on: the next save works and leaves nothing of the failed one
            after = kind(root, keep=2, report=messages.append)
            after.publish(40, example_state(40), {"note": 40})
            intact = judge(after, digests) == (40, True) and not list(root.glob(".*"))
        killed = os.WIFSIGNALED(status)
        results.append(
            {"point": point, "call": call, "latest": latest, "intact": intact, "killed": killed, "status": status}
        )
        if not call:
            return results


if __name__ == "__main__":
    for line in run(STORES[sys.argv[1]], sys.argv[2], Path(sys.argv[3])):
        print(json.dumps(line))
