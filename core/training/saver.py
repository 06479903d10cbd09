"""Publishing checkpoints, at once or while the training goes on.

A save behind the training first copies the state to the host's memory (`staged`), so that the next step may change it,
and is published by a thread as soon as the files of all processes are there. One is in flight at a time: the next save
waits for it, and so does the end of the run. A kill in between leaves the checkpoint before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from core.errors import CheckpointError
from core.training.checkpoint import CheckpointStore
from core.training.say import say


class Saver:
    """What fails is reported; an error is the second failure in a row, and one that no save would follow.

    Args:
        store: of the run. For saves behind the training, its world has a group of its own (`World.apart`): two threads
            that use one group would wait for each other.
        behind: whether saves go on behind the training.
    """

    def __init__(self, store: CheckpointStore, behind: bool = False):
        self.store, self.behind = store, behind
        self.failed = 0  # saves in a row
        self._thread: ThreadPoolExecutor | None = None
        self._flight: tuple[int, Future[None]] | None = None

    def save(self, step: int, state: Callable[[], dict[str, Any]], extra: dict[str, Any], leaving: bool) -> None:
        """Publish a checkpoint; every process calls it.

        Args:
            state: gives the tensors, see `CheckpointStore.publish`.
            leaving: no other save would follow, so that this one is not behind the training.
        Raises CheckpointError or OSError as the class says.
        """
        self.wait()
        behind = self.behind and not leaving
        self._count(step, lambda: (self._begin if behind else self.store.publish)(step, state(), extra), leaving)

    def wait(self) -> None:
        """Until nothing is in flight. Raises as `save`."""
        if self._flight is not None:
            (step, flight), self._flight = self._flight, None
            self._count(step, flight.result, leaving=False, reported=True)

    def close(self) -> None:
        """Wait, where an error would hide a greater one."""
        try:
            self.wait()
        except (CheckpointError, OSError) as error:
            say(str(error))
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _begin(self, step: int, state: dict[str, Any], extra: dict[str, Any]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._flight = step, self._thread.submit(self._publish, step, staged(state), extra)

    def _publish(self, step: int, state: dict[str, Any], extra: dict[str, Any]) -> None:
        try:
            self.store.publish(step, state, extra)
        except (CheckpointError, OSError) as error:  # now, and not at the next save
            say(_failed(step, error))
            raise

    def _count(self, step: int, action: Callable[[], Any], leaving: bool, reported: bool = False) -> None:
        try:
            action()
        except (CheckpointError, OSError) as error:
            self.failed += 1
            if self.failed >= 2 or leaving:
                raise
            if not reported:
                say(_failed(step, error))
        else:
            self.failed = 0 if self._flight is None else self.failed


def _failed(step: int, error: Exception) -> str:
    return f"checkpoint of step {step} could not be saved: {error}"


def staged(state: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of tensors, copied to the CPU; of a sharded one what lies on this device."""
    return {
        name: staged(value) if isinstance(value, dict) else value.detach().to("cpu", copy=True)
        for name, value in state.items()
    }
