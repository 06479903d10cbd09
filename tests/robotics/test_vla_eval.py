"""The model server of vla-eval: its messages by hand, and its own client where it is installed."""

from __future__ import annotations

import asyncio
import io
import time

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed (extra `robots`)")
pytest.importorskip("websockets", reason="websockets is not installed (extra `robots`)")

from websockets.sync.client import connect  # noqa: E402

from robotics.vla_eval import vla_eval_session  # noqa: E402
from tests.robotics.serving import serving  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


class Recorder:
    def __init__(self):
        self.resets, self.seen = [], []

    def reset(self, instruction: str, seed: int = 0) -> None:
        self.resets.append((instruction, seed))

    def predict_action_chunk(self, observation) -> np.ndarray:
        self.seen.append(observation)
        if observation["instruction"] == "fail":
            raise RuntimeError("out of memory")
        return np.stack([[len(self.seen), k, 0, 0.4, 0.3, -0.2, 1.0] for k in range(3)])


def png(image: np.ndarray) -> dict:
    """As vla-eval sends images."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return {"__image__": True, "format": "png", "data": file.getvalue(), "shape": list(image.shape)}


def test_a_benchmark_by_its_messages():
    made = Recorder()
    with serving(lambda: made, vla_eval_session(execute=2)) as (url, _), connect(url) as connection:

        def say(kind: str, number: int, payload: dict, answered: bool = True) -> dict:
            message = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
            connection.send(msgpack.packb(message))
            return msgpack.unpackb(connection.recv(timeout=10), raw=False) if answered else {}

        hello = say("hello", 1, {"harness_version": "0.8.0", "protocol_version": 1})
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 1, 1)
        say("episode_start", 2, {"task": {"name": "x", "episode_idx": 0}}, answered=False)
        seen = {"images": {"primary": png(IMAGE)}, "task_description": "pick coke can", "task_name": "x"}
        taken = []
        for number in range(3, 6):
            action = say("observation", number, seen)
            assert (action["type"], action["seq"]) == ("action", number)
            values = action["payload"]["actions"]
            assert (values["__ndarray__"], values["shape"]) == (True, [7])
            taken.append(np.frombuffer(values["data"], values["dtype"]))
        assert [tuple(action[:2]) for action in taken] == [(1, 0), (1, 1), (2, 0)]  # two of each chunk
        expected = Rotation.from_euler("xyz", [0.4, 0.3, -0.2]).as_rotvec()
        np.testing.assert_allclose(taken[0][3:6], expected, atol=1e-6)
        assert taken[0][6] == 1.0
        np.testing.assert_array_equal(made.seen[0]["image"], IMAGE)

        say("episode_end", 6, {"metrics": {"success": False}}, answered=False)
        say("episode_start", 7, {"task": {}}, answered=False)
        assert say("observation", 8, seen)["payload"]["actions"]["shape"] == [7]
        assert made.resets == [("pick coke can", 0), ("pick coke can", 1)]

        failed = say("observation", 9, {**seen, "task_description": "fail"})
        assert (failed["type"], failed["seq"]) == ("error", 9)
        assert "RuntimeError: out of memory" in failed["payload"]["error"]
        assert "no instruction" in say("observation", 10, {"images": seen["images"]})["payload"]["error"]
        assert "no `images`" in say("observation", 11, {"task_description": "x"})["payload"]["error"]
        assert "no message of vla-eval" in say("?", 12, {}, answered=False).get("x", "no message of vla-eval")


def test_its_own_client():
    connection_of = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")

    async def play(url: str) -> list[np.ndarray]:
        async with connection_of.Connection(url, timeout=10, max_retries=1) as connection:
            assert connection.server_info["protocol_version"] == 1
            await connection.start_episode({"task": {"name": "google_robot_pick_coke_can"}})
            seen = {"images": {"primary": IMAGE}, "task_description": "pick coke can"}
            taken = [(await connection.act(seen))["actions"] for _ in range(4)]
            await connection.end_episode({"metrics": {"success": False}})
            return taken

    made = Recorder()
    with serving(lambda: made, vla_eval_session()) as (url, _):
        taken = asyncio.run(play(url))
    assert [tuple(action[:2]) for action in taken] == [(1, 0), (1, 1), (1, 2), (2, 0)]
    np.testing.assert_array_equal(made.seen[0]["image"], IMAGE)


def test_a_camera_by_its_name():
    from robotics.vla_eval import as_request
    from robotics.wire import WireError

    payload = {"images": {"wrist": IMAGE[:4], "front": IMAGE}, "task_description": "x", "states": np.zeros(8)}
    assert as_request(payload, "front")["image"].shape == (8, 6, 3)
    assert as_request(payload, None)["image"].shape == (4, 6, 3)
    assert as_request(payload, None)["state"].shape == (8,)
    with pytest.raises(WireError, match="no image of the camera 'top', only of wrist, front"):
        as_request(payload, "top")
