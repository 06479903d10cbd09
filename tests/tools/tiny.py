"""The smallest joint model that has every part, and short ways to run the command line on it."""

from __future__ import annotations

from pathlib import Path

from core.training.checkpoint import PARTS as STATE
from core.training.checkpoint import CheckpointStore, digest
from tools.cli import main

CONFIG = Path(__file__).with_name("tiny.yaml")
STEPS = 6


def train(run: Path, *overrides: str, config: Path = CONFIG) -> int:
    """Exit code of `selfflow train` with `overrides`."""
    return main(["train", str(config), f"run={run}", *overrides])


def published(run: Path) -> list[int]:
    """Steps of the run's checkpoints."""
    return CheckpointStore(run / "checkpoints").steps()


def result(run: Path) -> dict[str, object]:
    """What two equal runs share: the digests of all weights and optimizer states, and the bytes of the metrics."""
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    parts = {part: store.load_weights(step, part) for part in STATE}
    return {"step": step, **digest(parts), "metrics": (run / "metrics.jsonl").read_text()}
