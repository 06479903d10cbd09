"""What the guards of a run cost: CPU seconds per step, beside those of a step, and wall seconds of a stop and a save.

    python -m tests.reliability.costs FOLDER [CONFIG] [key=value ...]

CPU seconds of this process, so that other work on the machine counts little. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import core.training.trainer as step_module
from configs.build import build_trainer
from configs.load import load_config
from core.training.checkpoint import CheckpointStore
from core.training.guards import all_finite, check_finite
from core.training.saver import staged
from core.training.spikes import Spikes, SpikesConfig
from core.training.stop import StopRequest
from core.training.stragglers import Stragglers
from core.training.trainer import Trainer
from core.training.watchdog import Watchdog, WatchdogConfig
from tests.tools.tiny import CONFIG

GIGABYTES = 0.4


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


def reduction(trainer: Trainer) -> float:
    """CPU seconds per step of what all processes exchange in one, on one device: metrics, stop flag, rejected records;
    without the gradient norm, which every loop has."""
    clip = step_module.clip_gradients
    values = {name: torch.ones((), dtype=torch.float64) for name in ("loss", "flow/image", "align/teacher")}
    microbatches = next(trainer.loader.steps(0, 1))[1]
    step_module.clip_gradients = lambda parameters, limit: torch.ones(())
    try:
        return cpu_seconds(lambda: trainer.reduce(values, microbatches), 2000)
    finally:
        step_module.clip_gradients = clip


def per_gigabyte(folder: Path, gigabytes: float) -> dict[str, float]:
    """Wall and CPU seconds for each GB (1e9 bytes) of a state of float32 tensors of 4 MB, on one process."""
    count = max(1, round(gigabytes * 1e9 / 4e6))
    state = {"student": {f"layer {i}": torch.randn(1000, 1000) for i in range(count)}}
    size, store = count * 4e-3, CheckpointStore(folder)

    def timed(action: Callable[[], object]) -> tuple[float, float]:
        wall, cpu = time.monotonic(), time.process_time()
        action()
        return (time.monotonic() - wall) / size, (time.process_time() - cpu) / size

    found = {
        "stage": timed(lambda: staged(state)),
        "save": timed(lambda: store.publish(1, state, {})),
        "verify": timed(lambda: CheckpointStore(folder).latest()),
        "load": timed(lambda: store.load(1, state)),  # verified already
    }
    wall = {f"{name}, seconds": times[0] for name, times in found.items()}
    return wall | {f"{name}, CPU seconds": times[1] for name, times in found.items()}


def measure(folder: Path, config: Path, overrides: list[str]) -> dict[str, object]:
    settings = load_config(
        config,
        [
            f"run={folder / 'run'}",
            "training.steps=20",
            "training.save_every=1000",
            "training.stop_within=600",
            *overrides,
        ],
    )
    trainer, taken, asked = build_trainer(settings, config.parent), [], []
    plain = trainer.train_step

    def train_step(step, microbatches):
        started = time.process_time()
        if step == 12:
            asked.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
        found = plain(step, microbatches)
        taken.append(time.process_time() - started)
        return found

    trainer.train_step = train_step
    publish, published = trainer.store.publish, []

    def timed(*arguments):
        started = time.monotonic()
        folder = publish(*arguments)
        published.append((time.monotonic() - started, time.monotonic() - asked[0]))
        return folder

    trainer.store.publish = timed
    trainer.fit()
    size = sum(path.stat().st_size for path in trainer.store.folder(13).rglob("*") if path.is_file())
    started = time.monotonic()
    again = build_trainer(settings, config.parent, store=CheckpointStore(folder / "run" / "checkpoints"))
    built = time.monotonic()
    again.resume()
    again.folder.close()
    step, costs, exchanged = sorted(taken[2:])[len(taken[2:]) // 2], guards(folder), reduction(again)
    return {
        "step, CPU seconds": step,
        "guards, CPU seconds": costs,
        "guards, share of a step": sum(costs.values()) / step,
        "reduction, CPU seconds": exchanged,
        "reduction, share of a step": exchanged / step,
        "all weights are finite, once per save, CPU seconds": cpu_seconds(
            lambda: all_finite(trainer.student, trainer.teacher), 5
        ),
        "from SIGTERM to publication, seconds": published[0][1],
        "save, seconds": published[0][0],
        "checkpoint, bytes": size,
        "verify and build, seconds": built - started,
        "load, seconds": time.monotonic() - built,
        "for each GB": per_gigabyte(folder / "large", GIGABYTES),
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    path = Path(arguments[1]) if len(arguments) > 1 and arguments[1].endswith(".yaml") else CONFIG
    with tempfile.TemporaryDirectory(dir=arguments[0]) as scratch:
        print(json.dumps(measure(Path(scratch), path, [a for a in arguments[1:] if "=" in a]), indent=1))
