"""The policy server and its client: whole episodes, late answers, health, and what is refused."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (extra `robots`)")
pytest.importorskip("websockets", reason="websockets is not installed (extra `robots`)")

from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from core.errors import ConfigError  # noqa: E402
from robotics.client import RemotePolicy, ServerError  # noqa: E402
from robotics.server import Inference, ServerOptions, listen, openpi_session  # noqa: E402
from robotics.wire import WireError, pack, unpack  # noqa: E402
from tests.robotics.serving import serving  # noqa: E402
from tools.cli import main  # noqa: E402


def observation(instruction: str = "pick apple", x: float = 0.0) -> dict:
    return {"image": np.zeros((8, 6, 3), np.uint8), "state": np.array([x], np.float32), "instruction": instruction}


class Counter:
    """Chunks of three actions that tell how often it was asked, and with what."""

    def __init__(self, waits: tuple[float, ...] = ()):
        self.resets, self.seen, self.waits = [], [], list(waits)

    def reset(self, instruction: str, seed: int = 0) -> None:
        self.resets.append((instruction, seed))

    def predict_action_chunk(self, observation) -> np.ndarray:
        self.seen.append(observation)
        if self.waits:
            time.sleep(self.waits.pop(0))
        chunk = np.zeros((3, 7))
        chunk[:, 0] = len(self.seen) + np.arange(3) / 10
        return chunk


def first(policy: RemotePolicy, **given) -> float:
    return round(float(policy.select_action(observation(**given))[0]), 3)


def test_chunks_are_executed_in_order_and_dropped_when_the_instruction_changes():
    made = Counter()
    with serving(lambda: made) as (url, _):
        policy = RemotePolicy(url, execute=2)
        assert policy.metadata == {"policy": "test"}
        policy.reset("pick apple", seed=5)
        taken = [first(policy) for _ in range(4)]
        assert taken == [1.0, 1.1, 2.0, 2.1]
        assert first(policy) == 3.0
        assert first(policy, instruction="place apple") == 4.0  # 3.1 was meant for the other instruction
        policy.reset("pick apple", seed=6)
        assert first(policy) == 5.0
        assert made.resets == [("pick apple", 5), ("pick apple", 6)]
        assert made.seen[0]["image"].shape == (8, 6, 3)
        assert made.seen[3]["instruction"] == "place apple"
        policy.close()
        policy.close()


def test_each_session_has_a_policy_of_its_own():
    with serving(Counter) as (url, inference):
        one, two = RemotePolicy(url), RemotePolicy(url)
        for policy in (one, two):
            policy.reset("pick apple")
        assert [first(one), first(two)] == [1.0, 1.0]
        assert inference.health()["sessions"] == 2
        one.close()
        two.close()


def test_an_answer_that_comes_too_late_is_never_executed():
    made = Counter(waits=(1.0,))
    with serving(lambda: made) as (url, _):
        policy = RemotePolicy(url)
        policy.reset("pick apple")
        policy.patience = 0.3
        with pytest.raises(ServerError, match=r"gave no answer within 0.3 s"):
            policy.select_action(observation())
        policy.patience = 20
        assert first(policy, x=2.0) == 2.0  # the first answer, 1.0, was in between
        assert policy.dropped == 1
        assert [float(seen["state"][0]) for seen in made.seen] == [0.0, 2.0]
        policy.close()


def test_health_is_answered_while_a_policy_computes():
    with serving(lambda: Counter(waits=(4.0,))) as (url, _):
        policy = RemotePolicy(url)
        policy.reset("pick apple")
        asking = threading.Thread(target=policy.select_action, args=(observation(),))
        asking.start()
        time.sleep(0.5)
        start = time.perf_counter()
        with urllib.request.urlopen(url.replace("ws", "http", 1) + "/health", timeout=10) as answer:
            health = json.load(answer)
        assert time.perf_counter() - start < 2.0
        assert health == {"status": "ok", "sessions": 1, "answered": 0, "waiting": 1}
        asking.join()
        policy.close()


def test_a_client_of_openpi_is_understood():
    """Its names, its form of arrays, no sequence numbers and no reset."""
    with serving(Counter) as (url, _), connect(url, max_size=None) as connection:
        assert unpack(connection.recv()) == {"policy": "test"}
        image = np.zeros((8, 6, 3), np.uint8)
        fields = {b"__ndarray__": True, b"data": image.tobytes(), b"dtype": "|u1", b"shape": image.shape}
        connection.send(msgpack.packb({"observation/image": fields, "prompt": "pick apple"}))
        answer = msgpack.unpackb(connection.recv(), raw=False, strict_map_key=False)
        assert set(answer) == {"actions", "server_timing"}
        assert answer["actions"][b"dtype"] == "<f4"
        assert answer["actions"][b"shape"] == [3, 7]


class Broken:
    def __init__(self, actions):
        self.actions = actions

    def reset(self, instruction: str, seed: int = 0) -> None:
        pass

    def predict_action_chunk(self, observation):
        if isinstance(self.actions, Exception):
            raise self.actions
        return self.actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((3, 7), np.nan), "not finite: entry 0 of step 0 is nan"),
        (np.r_[np.zeros(20), np.inf].reshape(3, 7), "not finite: entry 6 of step 2 is inf"),
        (np.zeros((3, 8)), r"actions of shape \(3, 8\); a chunk is \(K, 7\)"),
        (np.zeros(7), r"actions of shape \(7,\)"),
        (np.zeros((0, 7)), r"actions of shape \(0, 7\)"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
    ],
)
def test_what_a_broken_policy_says_reaches_no_robot(actions, message):
    with serving(lambda: Broken(actions)) as (url, _):
        policy = RemotePolicy(url)
        policy.reset("pick apple")
        with pytest.raises(ServerError, match=message):
            policy.select_action(observation())
        with pytest.raises(ServerError, match="has closed the session"):
            policy.select_action(observation())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": ""}, "no instruction: `prompt` must say"),
        ({"instruction": None}, "no instruction"),
        ({"image": np.zeros((8, 6, 3), np.float32)}, r"`image`: float32 \(8, 6, 3\); it must be uint8"),
        ({"image": np.zeros((8, 6), np.uint8)}, r"`image`: uint8 \(8, 6\)"),
        ({"image": np.zeros((0, 6, 3), np.uint8)}, "is empty"),
        ({"state": np.array([np.nan], np.float32)}, r"`state`: float32 \(1,\) must be finite"),
    ],
)
def test_bad_observations_are_refused_in_one_line(change, message):
    with serving(Counter) as (url, inference):
        policy = RemotePolicy(url)
        policy.reset("pick apple")
        with pytest.raises(ServerError, match=message):
            policy.select_action({**observation(), **change})
        assert inference.answered == 0


@pytest.mark.parametrize("data", [b"\xc1", b"", msgpack.packb([1, 2]), "text"])
def test_what_is_no_request_is_refused(data):
    with serving(Counter) as (url, _), connect(url) as connection:
        connection.recv()
        connection.send(data)
        assert isinstance(connection.recv(), str)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 1008


def test_a_request_over_the_limit_ends_the_session():
    with serving(Counter, largest=10_000) as (url, _):
        policy = RemotePolicy(url)
        policy.reset("pick apple")
        with pytest.raises(ServerError, match=r"has closed the session \(.*(10000|1009)"):
            policy.select_action({**observation(), "image": np.zeros((100, 100, 3), np.uint8)})


def test_a_silent_session_is_closed_and_too_many_are_turned_away():
    with serving(Counter, patience=2.0, sessions=1) as (url, inference):
        with connect(url) as connection:
            connection.recv()
            with connect(url) as other, pytest.raises(ConnectionClosed) as busy:
                other.recv()
            assert busy.value.rcvd.reason == "1 sessions are open"
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv(timeout=10)
            assert closed.value.rcvd.reason == "no request for 2 s"
        until = time.monotonic() + 10
        while inference.health()["sessions"] and time.monotonic() < until:
            time.sleep(0.01)
        assert inference.health()["sessions"] == 0


def test_pages_of_a_browser_are_turned_away():
    with serving(Counter) as (url, _), pytest.raises(Exception, match="403"):
        connect(url, origin="http://somewhere.example")


def test_no_server_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ServerError, match=r"no policy server at ws://127.0.0.1:\d+ .*start one with `selfflow serve`"):
        RemotePolicy(url, patience=5)
    with pytest.raises(ServerError, match="not the address of a server"):
        RemotePolicy("nowhere")


def test_a_port_that_is_taken_and_wrong_options_are_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--policy", "random", "--port", str(port)]) == 2
    assert f"--port: 127.0.0.1:{port} cannot be used" in capsys.readouterr().err
    assert main(["serve", "--policy", "random", "--patience", "0"]) == 2
    assert "patience: 0.0 must be at least 0.1" in capsys.readouterr().err
    assert main(["serve", "--policy", "random", "--protocol", "vla-eval", "--k", "0"]) == 2


@pytest.mark.parametrize("name", ["random", "repeat", "zero"])
def test_policies_of_the_command_line_are_served(name):
    from tools.serve import POLICIES

    with serving(POLICIES[name]) as (url, _):
        policy = RemotePolicy(url, execute=1)
        drawn = []
        for seed in (0, 0, 1):
            policy.reset("pick apple", seed)
            drawn.append(np.stack([policy.select_action(observation()) for _ in range(3)]))
        policy.close()
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2]) == (name == "zero")
    assert np.array_equal(drawn[0][0], drawn[0][1]) == (name != "random")


# ---- the form of messages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["bytes", "text"])
def test_arrays_come_back(keys):
    message = {"image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "x": np.float32(0.5), "n": [1, None, "a"]}
    back = unpack(pack(message, keys))
    np.testing.assert_array_equal(back["image"], message["image"])
    assert back["image"].dtype == np.uint8
    assert (back["x"], back["n"]) == (0.5, [1, None, "a"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": b"1234", "dtype": "|O", "shape": [1]}, "only numbers are read"),
        ({"data": b"1234", "dtype": "<f4", "shape": [2]}, r"shape \(2,\) and type float32 with 4 bytes"),
        ({"data": b"1234", "dtype": "<f4", "shape": [-1]}, "with 4 bytes"),
        ({"data": b"", "dtype": "<f4", "shape": [2**33, 2**33, 0 + 2**33]}, "with 0 bytes"),
        ({"data": b"1234", "dtype": "nonsense", "shape": [1]}, "no message of msgpack"),
        ({"data": b"1234", "dtype": "<f4"}, "no message of msgpack"),
    ],
)
def test_arrays_that_are_none_are_refused(fields, message):
    with pytest.raises(WireError, match=message):
        unpack(msgpack.packb({"__ndarray__": True, **fields}))


def test_only_numbers_are_sent():
    for value in (np.array([{}], dtype=object), {1, 2}):
        with pytest.raises(TypeError, match="cannot be sent"):
            pack({"x": value})


def test_options_of_a_server():
    serve = listen(Inference(Counter), ServerOptions(sessions=0), openpi_session({}))
    with pytest.raises(ConfigError, match="sessions: 0 must be at least 1"):
        asyncio.run(serve)
