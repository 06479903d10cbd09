"""A policy on a server (`selfflow serve`), used like any policy.

This module and robotics/wire.py need numpy, msgpack and websockets, and neither torch nor this project's core.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import numpy as np

from robotics.wire import WireError, pack, unpack


class ServerError(Exception):
    """The server cannot be reached, is too slow, or refused; one line."""


class RemotePolicy:
    """Asks a server for chunks of actions and executes some of each.

    Every request has a number, and the answer repeats it: one that comes after its request was given up is dropped, and
    never executed.

    Args:
        url: such as ws://127.0.0.1:8000.
        execute: actions of a chunk that are executed before the next is asked for; None is all of them.
        patience: seconds to wait for the connection, and for each answer.

    Raises:
        ServerError: there is no such server.
    """

    def __init__(self, url: str = "ws://127.0.0.1:8000", execute: int | None = None, patience: float = 60.0):
        from websockets.exceptions import InvalidURI, WebSocketException
        from websockets.sync.client import connect

        if execute is not None and execute < 1:
            raise ServerError(f"execute: {execute} must be at least 1")
        self.url, self.execute, self.patience = url, execute, patience
        self._numbers = itertools.count(1)
        self._seed = 0
        self._begins = True
        self._queue: list[np.ndarray] = []
        self._instruction = ""
        self.dropped = 0  # answers that came too late
        self._session = contextlib.ExitStack()
        try:
            opening = connect(url, open_timeout=patience, max_size=None, compression=None)
            self._connection = self._session.enter_context(opening)
            self.metadata: dict[str, Any] = self._receive(time.monotonic() + patience)
        except InvalidURI as error:
            raise ServerError(f"{url}: not the address of a server, such as ws://127.0.0.1:8000") from error
        except (OSError, TimeoutError, WebSocketException) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"no policy server at {url} ({reason}); start one with `selfflow serve`") from error

    def reset(self, instruction: str, seed: int = 0) -> None:
        """An episode begins: what is left of a chunk is dropped, and the server learns of it with the next request."""
        self._queue, self._instruction, self._seed, self._begins = [], instruction, seed, True

    def select_action(self, observation: Any) -> np.ndarray:
        """The next action (A,): from the last chunk, or from a new one; a new instruction ends a chunk."""
        if observation["instruction"] != self._instruction:
            self._queue, self._instruction = [], observation["instruction"]
        if not self._queue:
            self._queue = list(self.predict_action_chunk(observation)[: self.execute])
        return self._queue.pop(0)

    def predict_action_chunk(self, observation: Any) -> np.ndarray:
        """A chunk of actions (K, A) for this observation.

        Raises:
            ServerError: the server refused, is gone, or was too slow.
        """
        number = next(self._numbers)
        request: dict[str, Any] = {
            "sequence": number,
            "image": np.asarray(observation["image"]),
            "state": np.asarray(observation["state"], dtype=np.float32),
            "prompt": observation["instruction"],
        }
        if self._begins:
            request.update(reset=True, seed=self._seed)
        until = time.monotonic() + self.patience
        self._send(request)
        while True:
            answer = self._receive(until)
            if answer.get("sequence") == number:
                break
            self.dropped += 1
        self._begins = False
        return np.asarray(answer["actions"])

    def close(self) -> None:
        """End the session; may be called twice."""
        self._session.close()

    def _send(self, request: dict[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.send(pack(request))
        except ConnectionClosed as error:
            raise ServerError(f"{self.url} has closed the session ({_reason(error)})") from error

    def _receive(self, until: float) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            data = self._connection.recv(timeout=max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise ServerError(f"{self.url} gave no answer within {self.patience:g} s") from None
        except ConnectionClosed as error:
            raise ServerError(f"{self.url} has closed the session ({_reason(error)})") from error
        if isinstance(data, str):  # as openpi does: text is an error
            raise ServerError(f"{self.url} refused: {data.strip().splitlines()[-1]}")
        try:
            return unpack(data)
        except WireError as error:
            raise ServerError(f"{self.url} does not speak this protocol: {error}") from error


def _reason(error: Any) -> str:
    closing = error.rcvd
    return "without a reason" if closing is None else closing.reason or f"code {closing.code}"
