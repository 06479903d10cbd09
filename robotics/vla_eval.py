"""The model server of vla-eval (https://pypi.org/project/vla-eval), so that its benchmarks run with our policies.

Its protocol, version 1: msgpack messages {"type", "payload", "seq", "timestamp"}, types hello, episode_start,
observation, action, episode_end, error. One action (A,) is asked for at a time; an answer has its request's number.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

from core.errors import described
from robotics.server import Inference, ServerOptions, Session, read_observation, receive
from robotics.simpler.actions import rotation_vector
from robotics.wire import WireError, pack

PROTOCOL = 1


def vla_eval_session(execute: int | None = None, camera: str | None = None, rotation: str = "rpy") -> Session:
    """The conversation with a benchmark of vla-eval.

    Args:
        execute: actions of a chunk that are executed before the next is predicted; None is all of them.
        camera: which of its images the policy sees; None takes the first.
        rotation: how the policy means its rotations. The benchmarks get rotation vectors, which SIMPLER takes as they
            are, and the gripper as an openness in [0, 1].
    """

    async def session(connection: Any, inference: Inference, options: ServerOptions) -> None:
        from websockets.exceptions import ConnectionClosed

        policy = await inference.run(inference.make_policy)
        queue: list[np.ndarray] = []
        instruction: str | None = None
        episodes = 0

        async def answer(kind: str, payload: dict[str, Any], number: int) -> None:
            message = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
            await connection.send(pack(message, keys="text"))

        with contextlib.suppress(ConnectionClosed):
            while True:
                try:
                    message = await receive(connection, options)
                    if message is None:
                        return
                    kind, payload, number = message["type"], message["payload"], int(message["seq"])
                except (WireError, KeyError, TypeError, ValueError) as error:
                    await answer("error", {"error": f"no message of vla-eval: {error!r}"}, 0)
                    continue
                if kind == "hello":
                    names = {"model_server": "selfflow", "harness_version": "", "capabilities": {}}
                    await answer("hello", {**names, "protocol_version": PROTOCOL}, number)
                elif kind == "episode_start":
                    queue, instruction, episodes = [], None, episodes + 1
                elif kind == "observation":
                    try:
                        observation = read_observation(as_request(payload, camera))
                        if instruction is None:
                            await inference.run(policy.reset, observation["instruction"], max(0, episodes - 1))
                        if observation["instruction"] != instruction:
                            queue, instruction = [], observation["instruction"]
                        if not queue:
                            chunk = await inference.run(inference.chunk, policy, observation)
                            queue = list(chunk[:execute])
                        action = queue.pop(0)
                        action[3:6] = rotation_vector(action[3:6], rotation)
                        await answer("action", {"actions": action}, number)
                    except ConnectionClosed:
                        return
                    except Exception as error:  # noqa: BLE001 - told to the benchmark, which counts it
                        await answer("error", {"error": described(error)}, number)

    return session


def as_request(payload: Any, camera: str | None) -> dict[str, Any]:
    """An observation of vla-eval by the names of `read_observation`.

    Raises:
        WireError: it has no image of that camera.
    """
    images = payload.get("images") if isinstance(payload, dict) else None
    if not isinstance(images, dict) or not images:
        raise WireError("the observation has no `images`")
    if camera is not None and camera not in images:
        raise WireError(f"no image of the camera {camera!r}, only of {', '.join(map(str, images))}")
    state = payload.get("states", payload.get("state"))
    return {
        "image": images[camera if camera is not None else next(iter(images))],
        "prompt": payload.get("task_description"),
        "state": state,
    }
