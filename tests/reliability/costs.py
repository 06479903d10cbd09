"""What the guards of a run cost: CPU seconds per step of each, of this process, so that other work counts little.

python -m tests.reliability.costs
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core.training.guards import check_finite
from core.training.spikes import Spikes, SpikesConfig
from core.training.stop import StopRequest
from core.training.stragglers import Stragglers
from core.training.watchdog import Watchdog, WatchdogConfig


def cpu_seconds(action: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - started) / times


def guards(folder: Path) -> dict[str, float]:
    """CPU seconds per step of each."""
    values = {f"term {i}": 1.0 + i for i in range(8)} | {"loss": 1.0, "grad_norm": 1.0}
    spikes, stragglers = Spikes(SpikesConfig(above=6.0)), Stragglers(0)
    for step in range(128):
        spikes.add("image", {"loss": 1.0 + step % 7, "grad_norm": 1.0}, spike=False)

    def judge() -> None:
        spikes.is_spike("image", values)
        spikes.add("image", values, spike=False)

    with StopRequest() as stop, Watchdog(WatchdogConfig(), folder / "stacks.txt", lambda: None) as dog:

        def watch() -> None:
            dog.step()
            dog.step("image")

        return {
            "values": cpu_seconds(lambda: check_finite(values), 5000),
            "watchdog": cpu_seconds(watch, 5000),
            "stop": cpu_seconds(lambda: next(stop.waiting([1])), 5000),
            "spikes": cpu_seconds(judge, 1000),
            "stragglers": cpu_seconds(lambda: stragglers.add(1, seconds=1.0, waited=0.1), 5000),
        }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(guards(Path(scratch)), indent=1))
