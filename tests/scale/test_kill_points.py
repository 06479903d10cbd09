"""One save of two processes, cut short at each durable call of each of them, and damage in each kind of its files.

A durable call is as in tests/reliability/kill_points.py. Every save runs in a world forked for it.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from core.errors import NotWrittenError
from core.training.checkpoint import CheckpointStore, digest
from core.training.distributed import World
from core.training.saver import Saver
from tests.reliability.kill_points import example_state, judge, watch
from tests.reliability.test_store import DAMAGES, empty_like
from tests.thinned import thinned
from tests.worlds import run, values

DIGESTS = {step: digest(example_state(step)) for step in (10, 20, 30, 40)}
Act = Callable[[int, str], None]


def sharded(state: dict[str, Any]) -> dict[str, Any]:
    """Every tensor dealt out by rows: 5 are 3 and 2. One number alone stays on every process."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))

    def deal(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: deal(item) for name, item in value.items()}
        return distribute_tensor(value, mesh, [Shard(0)]) if value.ndim else value

    return deal(state)


def save(root: Path, world: World, step: int, behind: bool = False) -> None:
    store = CheckpointStore(root, world=world, report=lambda line: None)
    if not behind:
        store.publish(step, sharded(example_state(step)), {"note": step})
        return
    saver = Saver(store, behind=True)
    saver.save(step, lambda: sharded(example_state(step)), {"note": step}, leaving=False)
    saver.wait()


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Checkpoints 10 and 20 of two processes."""
    root = tmp_path_factory.mktemp("template") / "checkpoints"

    def action(world: World) -> None:
        for step in (10, 20):
            save(root, world, step)

    values(run(2, action))
    assert judge(CheckpointStore(root), DIGESTS) == (20, True)
    return root


def points(root: Path, template: Path, rank: int, act: Callable[[Path, int], Act], behind: bool = False) -> list[dict]:
    """For each durable call of a process while step 30 is saved: its name, and how the two processes ended."""
    found: list[dict] = []
    while not found or found[-1]["call"]:
        point, place = len(found) + 1, root / f"{rank}-{len(found) + 1}"
        shutil.copytree(template, place)
        trace = root / f"{rank}-{point}.trace"
        trace.touch()

        def action(world: World, place: Path = place, trace: Path = trace, point: int = point) -> list[bool]:
            watched = [world.rank == rank]
            happen = act(trace, point)
            watch(place, lambda number, name: happen(number, name) if watched[0] else None)
            try:
                save(place, world, 30, behind)
            except NotWrittenError:
                failed = True
            else:
                failed = False
            watched[0] = False
            save(place, world, 40)  # life goes on
            return world.gather(failed)

        outcomes = run(2, action, timeout=60, exchange=20, waiting=20)
        found.append({"call": trace.read_text(), "place": place, "outcomes": outcomes})
    return found


def killed(trace: Path, point: int) -> Act:
    noted = os.open(trace, os.O_WRONLY)

    def act(number: int, name: str) -> None:
        if number == point:
            os.write(noted, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def full(trace: Path, point: int) -> Act:
    noted = os.open(trace, os.O_WRONLY)

    def act(number: int, name: str) -> None:
        if number == point:
            os.write(noted, name.encode())
            raise OSError(errno.ENOSPC, "No space left on device")

    return act


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("rank", "behind"), [(0, False), (1, False), (0, True), (1, True)])
def test_a_process_killed_at_any_durable_call_leaves_the_old_or_the_new_state(rank, behind, template, tmp_path):
    *cut, whole = points(tmp_path, template, rank, killed, behind)
    assert [outcome.code for outcome in whole["outcomes"]] == [0, 0]
    for row in cut:
        step, intact = judge(CheckpointStore(row["place"], report=lambda line: None), DIGESTS)
        assert row["outcomes"][rank].code == -signal.SIGKILL
        assert step in (20, 30)
        assert intact, row["call"]
    print(f"rank {rank}, behind {behind}: {len(cut)} points")
    assert len(cut) >= (4 if rank else 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_a_process_at_any_call_reaches_both_and_the_next_save_works(rank, template, tmp_path):
    rows = points(tmp_path, template, rank, full)
    print(f"rank {rank}: {len(rows) - 1} points")
    assert len(rows) >= 4
    for row in rows:
        assert [outcome.code for outcome in row["outcomes"]] == [0, 0], (row["call"], row["outcomes"][0].text)
        first, second = (outcome.value for outcome in row["outcomes"])
        assert first == second
        assert first[0] == first[1]  # both raised the same, or neither
        assert judge(CheckpointStore(row["place"]), DIGESTS) == (40, True)
        assert not list(row["place"].glob(".*"))


def kinds(step: Path) -> list[str]:
    """Every file of a checkpoint, by its path."""
    return sorted(path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file())


FILES = [f"tensors/{part}/{name}" for part in ("student", "teacher", "optimizer") for name in (
    "__0_0.distcp", "__1_0.distcp", ".metadata")] + ["state.json", "manifest.json"]  # fmt: skip


def test_the_files_of_two_processes(template):
    assert kinds(template / "step-00000020") == sorted(FILES)


@pytest.mark.parametrize(("damage", "name"), thinned(product(DAMAGES, FILES), 11))
def test_damage_is_noticed_and_the_older_checkpoint_is_used(name, damage, template, tmp_path):
    root = tmp_path / "checkpoints"
    shutil.copytree(template, root)
    DAMAGES[damage](root / "step-00000020" / name)
    messages: list[str] = []
    store = CheckpointStore(root, report=messages.append)
    assert store.latest() == 10
    assert len(messages) == 1
    assert Path(name).name in messages[0]
    into = empty_like(example_state(10))
    store.load(10, into)
    assert digest(into) == DIGESTS[10]
