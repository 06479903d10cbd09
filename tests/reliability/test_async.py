"""Saves behind the training: what is published is the state of the call, and until then the one before counts.

Numbers in brackets are those of the acceptance tests.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import CheckpointError
from core.training import checkpoint
from core.training.checkpoint import CheckpointStore, digest
from core.training.distributed import World
from core.training.saver import Saver
from tests.reliability.kill_points import example_state, in_child
from tests.worlds import run, values


@pytest.fixture
def held(monkeypatch):
    """An event that the writing of every checkpoint waits for."""
    go, plain = threading.Event(), checkpoint.save

    def save(*arguments: Any, **named: Any) -> Any:
        assert go.wait(60)
        return plain(*arguments, **named)

    monkeypatch.setattr(checkpoint, "save", save)
    return go


def overwrite(state: dict[str, Any]) -> None:
    for value in state.values():
        overwrite(value) if isinstance(value, dict) else value.fill_(7)


def test_the_state_of_the_call_is_published_and_the_one_before_counts_until_then(tmp_path, held):
    """[3] The training goes on while the writer is held up. Fails where live tensors are written."""
    held.set()
    store = CheckpointStore(tmp_path)
    saver = Saver(store, behind=True)
    saver.save(1, lambda: example_state(1), {"note": 1}, leaving=False)
    saver.wait()
    held.clear()
    state, wanted = example_state(2), digest(example_state(2))
    saver.save(2, lambda: state, {"note": 2}, leaving=False)
    overwrite(state)
    assert CheckpointStore(tmp_path).latest() == 1
    held.set()
    deadline = time.monotonic() + 30
    while store.latest() != 2 and time.monotonic() < deadline:  # by itself, not at the next save
        time.sleep(0.01)
    assert store.latest() == 2
    assert digest({part: unflat(store.load_weights(2, part)) for part in wanted}) == wanted
    saver.close()


def unflat(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, _, slot = name.rpartition("/")
        if head:
            found.setdefault(head, {})[slot] = tensor
        else:
            found[name] = tensor
    return found


def test_one_is_in_flight_and_leaving_waits(tmp_path, held):
    saver = Saver(CheckpointStore(tmp_path), behind=True)
    saver.save(1, lambda: example_state(1), {"note": 1}, leaving=False)
    threading.Timer(0.2, held.set).start()
    saver.save(2, lambda: example_state(2), {"note": 2}, leaving=True)
    assert CheckpointStore(tmp_path).steps() == [1, 2]
    saver.close()


def test_killed_between_staging_and_publication_the_one_before_is_there(tmp_path):
    """[3] SIGKILL while the thread writes."""
    CheckpointStore(tmp_path).publish(1, example_state(1), {"note": 1})

    def save() -> None:
        def killed(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.write_manifest = killed
        saver = Saver(CheckpointStore(tmp_path), behind=True)
        saver.save(2, lambda: example_state(2), {"note": 2}, leaving=False)
        saver.wait()

    assert os.WIFSIGNALED(in_child(save))
    store = CheckpointStore(tmp_path)
    assert list(tmp_path.glob(".writing-*"))
    assert store.latest() == 1
    store.publish(2, example_state(2), {"note": 2})
    assert store.latest() == 2


def test_a_failure_is_reported_at_once_and_the_second_in_a_row_is_an_error(tmp_path, monkeypatch, capsys):
    store, said = CheckpointStore(tmp_path), []
    plain, failing = store.publish, {1, 3, 4}

    def publish(step: int, state: dict, extra: dict) -> Path:
        if step in failing:
            raise CheckpointError(f"checkpoint {step}: {os.strerror(errno.ENOSPC)}")
        return plain(step, state, extra)

    monkeypatch.setattr(store, "publish", publish)
    monkeypatch.setattr("core.training.saver.say", said.append)
    saver = Saver(store, behind=True)

    def save(step: int) -> None:
        saver.save(step, lambda: example_state(step), {}, leaving=False)

    for step in range(1, 5):
        save(step)
    with pytest.raises(CheckpointError, match="checkpoint 4"):
        save(5)
    lines = [f"checkpoint of step {n} could not be saved: checkpoint {n}: No space left on device" for n in (1, 3, 4)]
    assert said == lines
    assert store.steps() == [2]
    saver.close()


def test_two_saves_while_the_main_thread_exchanges_all_the_time(tmp_path):
    """[4] Fails where the saver has the group of the main thread, and each waits for the other."""

    def action(world: World) -> list[int]:
        store = CheckpointStore(tmp_path, world=world.apart())
        saver, summed = Saver(store, behind=True), 0
        for step in (1, 2):
            saver.save(step, lambda step=step: example_state(step), {}, leaving=False)
            for _ in range(40):
                summed += int(world.sum(torch.ones(1)).item()) + len(world.gather(world.rank))
        saver.wait()
        saver.close()
        assert summed == 2 * 40 * 4
        return store.steps()

    assert values(run(2, action, timeout=60)) == [[1, 2]] * 2
