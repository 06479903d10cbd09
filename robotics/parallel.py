"""Episodes over several processes, whose results come back one by one, so that none is lost when something fails."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, cast

import torch

from core.errors import AccidentError, SelfFlowError, described

Work = Callable[[Sequence[int]], Iterable[Any]]


def spread(work: Work, items: Sequence[int], workers: int) -> Iterator[Any]:
    """What `work` yields for all items, in the order in which it is finished.

    Args:
        work: called in each process with its share of the items (every `workers`-th); yields a picklable result for
            each. With several workers it must itself be picklable: a function of a module, or a partial of one.
        workers: processes; 1 works in this one.

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
        process = context.Process(target=_run, args=(work, items[number::workers], threads, there), daemon=True)
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


def _run(work: Work, items: Sequence[int], threads: int, connection: Any) -> None:
    torch.set_num_threads(threads)
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
