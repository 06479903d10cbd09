"""The processes of one run, one per device, as torchrun starts them.

Rank 0 does what only one may do: it owns the run folder, the bar and the trackers. Whatever it decides reaches all, and
so does an error of any process, with its text: otherwise the others would wait for it until a timeout.

A run in one process is a world of one, `ALONE`, in which nothing is sent.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage] - documented
from torch.distributed.rendezvous import rendezvous

from core.errors import AccidentError, ConfigError, OtherProcessError, SelfFlowError, described, first_line
from core.training.stop import Stopped

Value = TypeVar("Value")

COLLECTIVE = timedelta(minutes=10)  # an exchange between devices
WAITING = timedelta(hours=6)  # for work of rank 0, such as reading a large checkpoint
REASON_SECONDS = 10.0  # how long a process whose exchange failed looks for the reason of another
SAME_SECONDS = 2.0  # how long it looks whether rank 0, which then tells it, failed alike
_REASON, _FAILED = "reason", "failed"


@dataclass(frozen=True)
class World:
    """
    Attributes:
        rank: of this process, 0 to `size` - 1.
        size: number of processes.
        store: where errors are left for the others; None for a world of one.
        waiting: a group of its own for `on_first`, `on_all` and `gather`, with a timeout of its own: while rank 0 is
            busy with the disk, nothing else may give up.
        patience: timeout of `waiting`.
    """

    rank: int = 0
    size: int = 1
    store: Store | None = None
    waiting: dist.ProcessGroup | None = None
    patience: timedelta = WAITING

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_first(self, action: Callable[[], Value]) -> Value:
        """Run on rank 0 alone. Its result, or its error, is that of every process."""
        if self.size == 1:
            return action()
        result, error = _outcome(action) if self.is_first else (None, None)
        box: list[Any] = [result, None if error is None else _portable(error)]
        dist.broadcast_object_list(box, src=0, group=self.waiting)
        if error is not None:
            raise _known_to_all(error, self.rank)
        if box[1] is not None:
            raise _known_to_all(box[1], self.rank)
        return cast(Value, result if self.is_first else box[0])

    def on_all(self, action: Callable[[], Value]) -> Value:
        """Run in every process, each for its own result; an error of one is raised in all, that of the lowest rank."""
        if self.size == 1:
            return action()
        result, error = _outcome(action)
        errors = self.gather(None if error is None else _portable(error))
        first = next((other for other in errors if other is not None), None)
        if first is None:
            return cast(Value, result)
        mine = error is not None and self.rank == next(r for r, other in enumerate(errors) if other is not None)
        raise _known_to_all(cast(BaseException, error) if mine else first, self.rank)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes in the order of their ranks, in every process. They are pickled."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.waiting)
        return found

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor, in place; it may lie on the device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    @contextmanager
    def errors_shared(self) -> Generator[None, None, None]:
        """An error inside is left for the others, and where an exchange fails since another process is gone, its error
        is raised in place of the connection's.

        For errors that one process meets alone: those of `on_first` and `on_all` have reached all already.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except (Exception, Stopped) as error:
            if is_known_to_all(error):
                raise
            if is_connection_lost(error):
                reason = self._look_up(_REASON, REASON_SECONDS)
                if reason is None:
                    raise
                raise _known_to_all(reason, self.rank) from error
            self._leave(error)
            if not self.is_first and isinstance(error, SelfFlowError):  # often all fail alike, as over a setting
                other = self._look_up(f"{_FAILED}/0", SAME_SECONDS)
                if other is not None and str(other) == str(error):
                    _known_to_all(error, self.rank)
            raise

    def _leave(self, error: BaseException) -> None:
        """Where the others find it: the first of several is the reason of all."""
        assert self.store is not None  # of a world of several
        text = pickle.dumps(_portable(error)).hex()
        with suppress(RuntimeError, OSError):  # the store was in a process that is gone
            self.store.set(f"{_FAILED}/{self.rank}", text)
            if self.store.add(f"{_REASON}/count", 1) == 1:
                self.store.set(_REASON, text)

    def _look_up(self, name: str, seconds: float) -> BaseException | None:
        """An error that another process has left, for which it may take a moment."""
        assert self.store is not None
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError, OSError):
            while not self.store.check([name]):
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.05)
            return pickle.loads(bytes.fromhex(self.store.get(name).decode()))
        return None

    def first_before_others(self, action: Callable[[], object]) -> None:
        """Run in every process, on rank 0 before the others: a download is then there for all."""
        self.on_first(lambda: (action(), None)[1])
        if not self.is_first:
            action()

    def apart(self) -> World:
        """The same processes with another group in place of `waiting`, for a thread beside the one that uses it. Every
        process calls this."""
        if self.size == 1:
            return self
        return replace(self, waiting=_waiting_group(self.patience))

    def close(self) -> None:
        """After the last exchange of a run that ends well."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = World()


def start(timeout: timedelta = COLLECTIVE, waiting: timedelta = WAITING, store: Store | None = None) -> World:
    """The world that this process was started in: torchrun's environment, or this process alone.

    On a machine with GPUs, the process gets that of its local rank.

    Args:
        timeout: of exchanges between devices.
        waiting: of exchanges that wait for work of rank 0.
        store: in place of the one that torchrun's environment names.

    Raises ConfigError for an environment that is not complete, and for more processes than GPUs, AccidentError for
    processes that cannot connect.
    """
    rank, size = _from_environment(("RANK",) if store is not None else ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    if size == 1:
        return ALONE
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if local >= devices:
            raise ConfigError(
                f"torchrun: process {local} of this machine has no GPU, there are {devices}; use --nproc-per-node "
                f"{devices} at most"
            )
        torch.cuda.set_device(local)
    if store is None:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
    store.set_timeout(timeout)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("groups", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        group = _waiting_group(waiting)
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        name = os.environ.get("GLOO_SOCKET_IFNAME")
        raise AccidentError(
            f"the {size} processes cannot reach each other ({first_line(error)}). Where a host's name does not lead to "
            "its address, gloo takes the loopback: set GLOO_SOCKET_IFNAME on every host to the network interface that "
            f"leads to the others (now {name or 'not set'})"
        ) from error
    return World(rank, size, PrefixStore("errors", store), group, waiting)


def _waiting_group(timeout: timedelta) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))


def _from_environment(names: tuple[str, ...]) -> tuple[int, int]:
    """(rank, size); a world of several needs `names` too."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if lacking := [name for name in names if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(lacking)} is not set; start the processes with "
            "torchrun, or unset WORLD_SIZE to train in one"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_connection_lost(error: BaseException) -> bool:
    """Whether an exchange failed, often since another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    )


def is_known_to_all(error: BaseException | None) -> bool:
    """Whether every process raises this error, or the one that it was made of."""
    while error is not None:
        if "known_to_all" in error.__dict__:
            return True
        error = error.__cause__
    return False


def is_told_by_first(error: BaseException | None) -> bool:
    """Whether rank 0, which is another process, prints this error."""
    while error is not None:
        if error.__dict__.get("known_to_all", 0) > 0:
            return True
        error = error.__cause__
    return False


def _known_to_all(error: BaseException, rank: int) -> BaseException:
    error.__dict__["known_to_all"] = rank
    return error


def _outcome(action: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must not wait for it
        return None, error


def _portable(error: BaseException) -> BaseException:
    """The error without its traceback, or in words where another process could not raise it."""
    if isinstance(error, SelfFlowError | OSError | Stopped):
        try:
            return pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - a class that cannot be pickled may fail in any way
            return OtherProcessError(described(error))
    return OtherProcessError(described(error))
