"""Small trainings in worlds of one and more, float64 where asked, and what is compared of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.assembly import Assembly
from configs.build import build_trainer
from configs.changes import resolve
from core.training.checkpoint import PARTS, CheckpointStore
from core.training.distributed import World
from core.training.records import read_lines
from core.training.trainer import Trainer
from tests.tools.tiny import CONFIG
from tests.worlds import run, values

BATCHES = ("streams.image.batch=8", "streams.video.batch=4", "streams.audio.batch=4")
UNEVEN = ("streams.image.batch=5", "streams.video.batch=3", "streams.audio.batch=3")


def build(world: World, folder: Path, *overrides: str, config: Path = CONFIG, double: bool = False) -> Trainer:
    """The trainer of `selfflow train`, in every process of a world; its network in float64 if `double`."""
    resolved = world.on_first(lambda: resolve(config, [f"run={folder}", *overrides], []))
    if double:
        plain = Assembly.trunk
        Assembly.trunk = property(lambda self: self.__dict__.setdefault("_double", plain.func(self).double()))  # type: ignore[method-assign]
    try:
        return build_trainer(resolved.config, config.parent, resolved.change, None, resolved.store, world=world)
    finally:
        if double:
            Assembly.trunk = plain  # type: ignore[method-assign]


def train(
    size: int,
    folder: Path,
    *overrides: str,
    config: Path = CONFIG,
    double: bool = True,
    before: Callable[[Trainer], Any] = lambda trainer: None,
    timeout: float = 120.0,
) -> list[str]:
    """What `fit` returned in every process of a new world; `before` is called on each trainer."""

    def action(world: World) -> str:
        trainer = build(world, folder, *overrides, config=config, double=double)
        before(trainer)
        return trainer.fit()

    return values(run(size, action, timeout=timeout))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "metrics.jsonl")


def state(folder: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint, read by this process alone."""
    store = CheckpointStore(folder / "checkpoints")
    step = store.latest()
    assert step is not None
    return {f"{part}/{name}": tensor for part in PARTS for name, tensor in store.load_weights(step, part).items()}


def metric_difference(one: Path, other: Path) -> float:
    """Largest relative difference of all numbers in metrics.jsonl."""
    largest = 0.0
    for a, b in zip(metrics(one), metrics(other), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, float):
                largest = max(largest, abs(value - b[name]) / max(abs(value), 1e-30))
            else:
                assert value == b[name]
    return largest


def weight_difference(one: Path, other: Path) -> float:
    """Largest absolute difference of student, teacher and optimizer state."""
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def same_bits(one: Path, other: Path) -> bool:
    a, b = state(one), state(other)
    equal = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return equal and (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
