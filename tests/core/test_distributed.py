"""Several processes: what rank 0 decides reaches all, and an error of one reaches all with its text."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time

import pytest
import torch

from core.errors import AccidentError, ConfigError, DataError, NotFiniteError, OtherProcessError
from core.training import distributed
from core.training.distributed import ALONE, World, is_told_by_first
from tests.worlds import run, values


def raised(action) -> tuple[str, str, bool]:
    """(class, text, whether this process leaves it to rank 0 to say it)."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return type(error).__name__, str(error), is_told_by_first(error)
    return "", "", False


def fail(error: Exception):
    raise error


def test_what_a_world_of_one_does_is_what_its_action_does():
    assert ALONE.on_first(lambda: 3) == ALONE.on_all(lambda: 3) == 3
    assert ALONE.gather("a") == ["a"]
    assert ALONE.sum(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(DataError, match="bad"), ALONE.errors_shared():
        fail(DataError("bad"))
    ALONE.close()


def test_values_and_errors_reach_all():
    def action(world: World):
        own = world.rank
        return {
            "first": world.on_first(lambda: own),
            "all": world.on_all(lambda: own),
            "gathered": world.gather(own),
            "sum": world.sum(torch.tensor([own, 1.0], dtype=torch.float64)).tolist(),
            "error of 0": raised(lambda: world.on_first(lambda: fail(ConfigError(["a: 1", "b: 2"])))),
            "error of 1": raised(lambda: world.on_all(lambda: fail(DataError("torn")) if own == 1 else None)),
            "bug of 1": raised(lambda: world.on_all(lambda: fail(TypeError("bug")) if own == 1 else None)),
            "next": world.gather(own),  # they are still in step
        }

    found = values(run(3, action))
    for rank, own in enumerate(found):
        assert own["first"] == 0
        assert own["all"] == rank
        assert own["gathered"] == own["next"] == [0, 1, 2]
        assert own["sum"] == [3, 3]
        assert own["error of 0"] == ("ConfigError", "a: 1\nb: 2", rank > 0)
        assert own["error of 1"] == ("DataError", "torn", rank > 0)
        kind, text, _ = own["bug of 1"]
        assert (kind, text.partition(" (")[0]) == (
            ("TypeError", "bug") if rank == 1 else ("OtherProcessError", "TypeError: bug")
        )


def test_an_error_that_one_process_meets_alone_replaces_the_broken_connection_of_the_others():
    """Broken: without `errors_shared`, rank 0 says 'Connection closed by peer'."""

    def action(world: World):
        with world.errors_shared():
            if world.rank == 1:
                time.sleep(0.2)
                raise NotFiniteError("step 7: loss is nan", 7)
            world.sum(torch.ones(1))

    first, second = run(2, action)
    assert first.error == second.error == "NotFiniteError: step 7: loss is nan"


def test_a_killed_process_is_told_as_a_broken_connection():
    def action(world: World):
        with world.errors_shared():
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return raised(lambda: world.sum(torch.ones(1)))

    began = time.monotonic()
    first, second = run(2, action)
    assert second.code == -signal.SIGKILL
    assert first.value[0] == "RuntimeError"
    assert time.monotonic() - began < 20


def test_rank_0_may_be_busy_for_longer_than_an_exchange_may_take():
    """[20] Fails where `on_first` uses the group of the training, whose timeout then ends rank 1."""

    def action(world: World):
        world.on_first(lambda: time.sleep(2.5))
        return world.sum(torch.ones(1)).item()

    assert values(run(2, action, exchange=1.0)) == [2, 2]


@pytest.mark.parametrize(
    "error", [ConfigError(["a", "b"]), NotFiniteError("x", 4), OSError(errno.ENOSPC, "No space left", "a/b")]
)
def test_errors_travel_with_all_that_they_know(error):
    copied = distributed._portable(error)
    assert copied is not error
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert getattr(copied, "bad_step", None) == getattr(error, "bad_step", None)
    assert getattr(copied, "filename", None) == getattr(error, "filename", None)


def test_an_error_that_cannot_travel_is_told_in_words():
    class Local(DataError):
        pass

    with pytest.raises(Exception, match="pickle"):
        pickle.dumps(Local("bad record"))
    found = distributed._portable(Local("bad record"))
    assert isinstance(found, OtherProcessError)
    assert "bad record" in str(found)


def test_hosts_that_gloo_cannot_connect_are_told_what_to_set(monkeypatch):
    """[27] Fails where gloo's own error, of a connection to 127.0.0.1, is all that is said."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)

    def refuse(*_, **__):
        raise RuntimeError("Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc] remote=[127.0.0.1]:53717")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with pytest.raises(AccidentError, match=r"remote=\[127.0.0.1\].*set GLOO_SOCKET_IFNAME.*now not set"):
        distributed.start(store=torch.distributed.HashStore())


def test_an_environment_that_is_not_complete_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT is not set; start the processes with torchrun"):
        distributed.start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.start() is ALONE
