"""What a step costs as the world grows: wall and CPU seconds, of the same optimizer step shared by more processes.

    python -m tests.scale.costs [CONFIG] [key=value ...]

With gloo and one thread a process. Where the processes share few cores more of them cannot be faster, so CPU seconds
count. Prints one JSON line for each world.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from core.training.distributed import World
from core.training.trainer import Trainer
from tests.scale.runs import build
from tests.tools.tiny import CONFIG
from tests.worlds import run, values

SIZES, STEPS, LEFT_OUT = (1, 2, 4), 24, 4


def measure(size: int, config: Path, overrides: list[str]) -> dict[str, float]:
    """Medians over the steps but the first; CPU seconds are of all processes together."""

    def action(world: World) -> list[tuple[float, float]]:
        torch.set_num_threads(1)
        trainer = build(world, folder, f"training.steps={STEPS}", "training.save_every=1000", *overrides, config=config)
        taken: list[tuple[float, float]] = []
        timed(trainer, taken)
        trainer.fit()
        return taken[LEFT_OUT:]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        ranks = values(run(size, action, timeout=600, exchange=300, waiting=600))
    steps = list(zip(*ranks, strict=True))  # of each step, (wall, CPU) of every process
    return {
        "processes": size,
        "wall seconds": statistics.median(max(wall for wall, _ in step) for step in steps),
        "CPU seconds": statistics.median(sum(cpu for _, cpu in step) for step in steps),
    }


def timed(trainer: Trainer, taken: list[tuple[float, float]]) -> None:
    plain = trainer.train_step

    def train_step(step, microbatches):
        wall, cpu = time.perf_counter(), time.process_time()
        found = plain(step, microbatches)
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
        return found

    trainer.train_step = train_step


if __name__ == "__main__":
    arguments = sys.argv[1:]
    path = Path(arguments[0]) if arguments and arguments[0].endswith(".yaml") else CONFIG
    for number in SIZES:
        print(json.dumps(measure(number, path, [a for a in arguments if "=" in a])), flush=True)
