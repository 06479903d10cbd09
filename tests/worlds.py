"""Small worlds for tests: processes forked from this one, gloo between them, and never one left behind.

    outcomes = run(2, lambda world: world.gather(world.rank))
    assert [outcome.value for outcome in outcomes] == [[0, 1], [0, 1]]

A fork costs no import, so a world takes about half a second. The children are killed at the timeout, which then fails
the test with what they printed.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from core.training import distributed
from core.training.distributed import World


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code (-9 for SIGKILL), what the action returned, what it raised, and its output."""

    code: int
    value: Any
    error: str
    text: str


def run(
    size: int,
    action: Callable[[World], Any],
    timeout: float = 60.0,
    exchange: float = 30.0,
    waiting: float = 60.0,
) -> list[Outcome]:
    """`action` in every process of a new world.

    Args:
        timeout: seconds after which the processes are killed and the test fails.
        exchange, waiting: seconds after which an exchange between devices, and one that waits for rank 0, fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children = [_fork(folder, rank, size, action, exchange, waiting) for rank in range(size)]
        codes = _wait(children, timeout)
        outcomes = [_outcome(folder, rank, code) for rank, code in enumerate(codes)]
    if None in codes:
        said = "\n".join(f"rank {rank}: {outcome.text[-3000:]}" for rank, outcome in enumerate(outcomes))
        pytest.fail(f"the world did not end within {timeout} s\n{said}")
    return outcomes


def values(outcomes: list[Outcome]) -> list[Any]:
    """What every process returned; fails with their output where one did not."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, f"rank {rank} ended with {outcome.code}: {outcome.error}\n{outcome.text[-4000:]}"
    return [outcome.value for outcome in outcomes]


def _fork(folder: Path, rank: int, size: int, action: Callable, exchange: float, waiting: float) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
        store = dist.FileStore(str(folder / "store"), size)
        world = distributed.start(timedelta(seconds=exchange), timedelta(seconds=waiting), store)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(action(world)))
        world.close()
        code = 0
    except BaseException as error:  # noqa: BLE001 - a child must not return into the parent's tests
        traceback.print_exc()
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}")
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], timeout: float) -> list[int | None]:
    """Exit codes; None where a child had to be killed."""
    deadline, codes = time.monotonic() + timeout, dict.fromkeys(children)
    left = set(children)
    try:
        while left and time.monotonic() < deadline:
            for child in list(left):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    left.discard(child)
                    codes[child] = os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
    finally:
        for child in left:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return list(codes.values())


def _outcome(folder: Path, rank: int, code: int | None) -> Outcome:
    def read(name: str) -> bytes:
        path = folder / f"{rank}.{name}"
        return path.read_bytes() if path.exists() else b""

    value = read("pickle")
    error, text = read("error").decode(), read("txt").decode(errors="replace")
    return Outcome(-1 if code is None else code, pickle.loads(value) if value else None, error, text)
