"""Work over several processes, one for each GPU where there are GPUs.

Results come back one by one, so that none is lost when something fails.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, cast

import torch

from core.errors import AccidentError, ConfigError, SelfFlowError, described

DEVICES = "processes, one for each GPU if there are GPUs (default 1)"  # help of --devices

Work = Callable[[Sequence[int]], Iterable[Any]]


def spread(work: Work, items: Sequence[int], workers: int, daemon: bool = True) -> Iterator[Any]:
    """What `work` yields for all items, in the order in which it is finished.

    Args:
        work: called in each process with its share of the items (every `workers`-th); yields a picklable result for
            each. With several workers it must itself be picklable: a function of a module, or a partial of one.
        workers: processes; 1 works in this one. "cuda" is another GPU in each of them, as far as there are enough.
        daemon: the processes end with this one, and may start none of their own.

    Raises:
        SelfFlowError: the first error of a process, after all results that came before it.
        AccidentError: a process died.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from work(items)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    running: dict[Any, Any] = {}  # connection -> process
    for number in range(workers):
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_run, args=(work, items[number::workers], number, threads, there), daemon=daemon
        )
        process.start()
        there.close()
        running[here] = process
    try:
        while running:
            for connection in cast(list[Any], wait(list(running))):
                try:
                    kind, value = connection.recv()
                except EOFError:
                    process = running.pop(connection)
                    process.join()
                    raise AccidentError(f"a worker process ended with exit code {process.exitcode}") from None
                if kind == "failed":
                    raise value
                if kind == "finished":
                    running.pop(connection).join()
                else:
                    yield value
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def in_order(results: Iterable[tuple[int, Any]], items: Iterable[int]) -> Iterator[Any]:
    """The results of (item, result) in the order of the items; those that come early wait in memory."""
    early: dict[int, Any] = {}
    found = iter(results)
    for item in items:
        while item not in early:
            number, result = next(found)
            early[number] = result
        yield early.pop(item)


def check_devices(devices: int) -> None:
    """Raises ConfigError for fewer than one, and for more than this machine has GPUs, if it has any."""
    if devices < 1:
        raise ConfigError(f"--devices: {devices} must be at least 1")
    if (gpus := torch.cuda.device_count()) and devices > gpus:
        raise ConfigError(f"--devices: {devices} are more than the {gpus} GPUs of this machine")


def _run(work: Work, items: Sequence[int], number: int, threads: int, connection: Any) -> None:
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        for result in work(items):
            connection.send(("result", result))
        connection.send(("finished", None))
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        connection.send(("failed", _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error itself where it can travel between processes, else one that says the same."""
    if isinstance(error, SelfFlowError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except (TypeError, AttributeError, pickle.PicklingError):
            pass
    return AccidentError(f"a worker process failed: {described(error)}")
