"""A policy server in a thread, for tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from robotics.server import Inference, ServerOptions, Session, listen, openpi_session


@contextmanager
def serving(
    make_policy: Callable[[], Any], session: Session | None = None, **options: Any
) -> Iterator[tuple[str, Inference]]:
    """The address and the inference of a server on a free port, until the block is left."""
    inference = Inference(make_policy)
    ready, found = threading.Event(), {}

    async def run() -> None:
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()

        def started(port: int) -> None:
            found["port"] = port
            ready.set()

        chosen = session or openpi_session({"policy": "test"})
        await listen(inference, ServerOptions(port=0, **options), chosen, started, found["stop"])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"ws://127.0.0.1:{found['port']}", inference
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(20)
