"""A policy served over a websocket, as openpi does: metadata on connecting, then an observation in, a chunk out.

Request: {"image": uint8 (H, W, 3), "prompt": text, "state": (S,) or absent, "sequence": any number or absent,
"reset": True at an episode's beginning, "seed": of it}, in the form of robotics/wire.py. openpi's own names
`observation/image` and `observation/state` are read too. Answer: {"actions": float32 (K, A), "sequence": as asked,
"server_timing": {"infer_ms"}}. A text instead of bytes is an error, after which the session is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from core.errors import ConfigError, DataError, SelfFlowError, described
from core.optional import need
from robotics.environment import ACTION_NAMES, Observation, Policy
from robotics.wire import WireError, pack, unpack

ALIASES = {"observation/image": "image", "observation/state": "state", "instruction": "prompt"}
BAD_REQUEST, FAILED, BUSY, GONE = 1008, 1011, 1013, 1001  # codes that a websocket is closed with (RFC 6455)


class ChunkPolicy(Protocol):
    """What a server asks of a policy. One for each session; they may share weights.

    It has `predict_action_chunk(observation) -> (K, A)`, or else `select_action(observation) -> (A,)`.
    """

    def reset(self, instruction: str, seed: int = 0) -> None: ...


@dataclass(frozen=True)
class ServerOptions:
    """host: 127.0.0.1 lets only this machine in; a server has no passwords.
    port: 0 takes a free one.
    patience: seconds without a request after which a session is closed.
    largest: bytes of a request.
    sessions: at most, at once.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    patience: float = 600.0
    largest: int = 1 << 24
    sessions: int = 16

    def problems(self) -> list[str]:
        least = {"port": 0, "patience": 0.1, "largest": 1024, "sessions": 1}
        found = [f"{name}: {getattr(self, name)} must be at least {low}" for name, low in least.items()]
        return [line for line, (name, low) in zip(found, least.items(), strict=True) if getattr(self, name) < low]


class Inference:
    """Policies of the sessions, asked one at a time in a thread of their own, so that the server stays awake.

    Args:
        make_policy: called once for each session.
        width: of an action; another is refused.
    """

    def __init__(self, make_policy: Callable[[], ChunkPolicy], width: int = len(ACTION_NAMES)):
        self.make_policy, self.width = make_policy, width
        self.answered, self.waiting, self.open = 0, 0, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    async def run(self, work: Callable[..., Any], *given: Any) -> Any:
        """`work(*given)` in the thread of the policies."""
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)
        finally:
            self.waiting -= 1

    def chunk(self, policy: ChunkPolicy, observation: Observation) -> np.ndarray:
        """The policy's actions, float32 (K, A).

        Raises:
            DataError: of another width, or not finite.
        """
        predict = getattr(policy, "predict_action_chunk", None)
        found = predict(observation) if predict else cast(Policy, policy).select_action(observation)[None]
        actions = np.asarray(found, dtype=np.float64)
        if actions.ndim != 2 or len(actions) < 1 or actions.shape[1] != self.width:
            raise DataError(f"the policy gave actions of shape {actions.shape}; a chunk is (K, {self.width})")
        if not np.isfinite(actions).all():
            step, entry = (int(place) for place in np.argwhere(~np.isfinite(actions))[0])
            raise DataError(
                f"the policy gave an action that is not finite: entry {entry} of step {step} is "
                f"{actions[step, entry]}; its weights or statistics are broken"
            )
        self.answered += 1
        return actions.astype(np.float32)

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "sessions": self.open, "answered": self.answered, "waiting": self.waiting}

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


Session = Callable[[Any, Inference, ServerOptions], Awaitable[None]]


async def listen(
    inference: Inference,
    options: ServerOptions,
    session: Session,
    started: Callable[[int], None] = lambda port: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set, or for ever.

    Args:
        session: the exchange of one connection.
        started: called with the port once connections are taken.

    Raises:
        ConfigError: websockets or msgpack are not installed, the port is taken, the options are wrong.
    """
    if problems := options.problems():
        raise ConfigError(problems)
    asked, without = "a policy server", "Training and generation work"
    need("msgpack", asked, without)
    server = need("websockets.asyncio.server", asked, without)

    def health(connection: Any, request: Any) -> Any:
        if request.path.partition("?")[0] not in ("/health", "/healthz"):
            return None
        response = connection.respond(200, json.dumps(inference.health()) + "\n")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def connected(connection: Any) -> None:
        if inference.open >= options.sessions:
            await connection.close(BUSY, f"{options.sessions} sessions are open")
            return
        inference.open += 1
        try:
            await session(connection, inference, options)
        finally:
            inference.open -= 1

    try:
        listening = await server.serve(
            connected,
            options.host,
            options.port,
            process_request=health,
            max_size=options.largest,
            compression=None,  # images do not shrink
            origins=[None],  # no pages of a browser, which could reach a server on this machine
        )
    except OSError as error:
        raise ConfigError(
            f"--port: {options.host}:{options.port} cannot be used ({error.strerror or error})"
        ) from error
    async with listening:
        started(listening.sockets[0].getsockname()[1])
        await (stop or asyncio.Event()).wait()
    inference.close()


async def receive(connection: Any, options: ServerOptions) -> Any | None:
    """The next message of a session, or None where it has ended: the client left, or said nothing for too long."""
    from websockets.exceptions import ConnectionClosed

    try:
        data = await asyncio.wait_for(connection.recv(), options.patience)
    except TimeoutError:
        await connection.close(GONE, f"no request for {options.patience:g} s")
        return None
    except ConnectionClosed:
        return None
    if isinstance(data, str):
        raise WireError("a text; requests are msgpack")
    return unpack(data)


def openpi_session(metadata: dict[str, Any]) -> Session:
    """The conversation with a client of openpi's kind, or `robotics.client`."""

    async def session(connection: Any, inference: Inference, options: ServerOptions) -> None:
        policy = await inference.run(inference.make_policy)
        begun = False
        await connection.send(pack(metadata))
        with contextlib.suppress(_closed()):
            try:
                while (request := await receive(connection, options)) is not None:
                    observation = read_observation(request)
                    if request.get("reset") or not begun:
                        await inference.run(policy.reset, observation["instruction"], int(request.get("seed") or 0))
                        begun = True
                    start = time.perf_counter()
                    actions = await inference.run(inference.chunk, policy, observation)
                    timing = {"infer_ms": 1000.0 * (time.perf_counter() - start)}
                    answer: dict[str, Any] = {"actions": actions, "server_timing": timing}
                    if "sequence" in request:
                        answer["sequence"] = request["sequence"]
                    await connection.send(pack(answer))
            except WireError as error:
                await refuse(connection, str(error), BAD_REQUEST)
            except Exception as error:  # noqa: BLE001 - told to the client, whatever a policy raises
                await refuse(connection, described(error), BAD_REQUEST if isinstance(error, SelfFlowError) else FAILED)

    return session


async def refuse(connection: Any, line: str, code: int) -> None:
    """Say what is wrong, and end the session."""
    await connection.send(line)
    await connection.close(code, line.encode()[:120].decode(errors="ignore"))


def read_observation(request: Any) -> Observation:
    """What a policy sees, from a request.

    Raises:
        WireError: no instruction, no image, or of other kinds than they must be.
    """
    if not isinstance(request, dict):
        raise WireError(f"a request is a table, not {type(request).__name__}")
    named = {ALIASES.get(str(name), str(name)): value for name, value in request.items()}
    instruction = named.get("prompt")
    if not isinstance(instruction, str) or not instruction.strip():
        raise WireError("no instruction: `prompt` must say what is to be done")
    image = named.get("image")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        seen = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise WireError(f"`image`: {seen}; it must be uint8 (H, W, 3), RGB")
    if 0 in image.shape:
        raise WireError(f"`image`: {image.shape} is empty")
    state = named.get("state")
    state = np.zeros(0) if state is None else np.asarray(state)
    if state.ndim != 1 or state.dtype.kind not in "iuf" or not np.isfinite(state).all():
        raise WireError(f"`state`: {state.dtype} {state.shape} must be finite numbers (S,)")
    return {"image": image, "state": state.astype(np.float32), "instruction": instruction}


def _closed() -> type[Exception]:
    from websockets.exceptions import ConnectionClosed

    return ConnectionClosed
