"""How runs of several processes end: signals, and values that are not finite."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.training.checkpoint import CheckpointStore
from core.training.distributed import World
from core.training.trainer import Trainer
from tests.scale.runs import BATCHES, build, train
from tests.worlds import Outcome, run


def steps_of(folder: Path) -> list[int]:
    return CheckpointStore(folder / "checkpoints").steps()


def during(trainer: Trainer, number: int, action: Callable[[list], None]) -> None:
    """Call `action` on the microbatches of the step with this number, before it is made."""
    plain = trainer.train_step

    def train_step(step: int, microbatches: Any) -> Any:
        if step + 1 == number:
            action(microbatches)
        return plain(step, microbatches)

    trainer.train_step = train_step


def ended(size: int, folder: Path, *overrides: str, before: Callable[[Trainer], None]) -> list[Outcome]:
    def action(world: World) -> str:
        trainer = build(world, folder, *overrides)
        before(trainer)
        return trainer.fit()

    return run(size, action, timeout=400, exchange=200, waiting=300)


def test_a_signal_to_one_stops_all_behind_the_same_step(tmp_path):
    """Broken: each process looks at its own flag, and the others wait for it in their next exchange."""

    def ask(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def before(trainer: Trainer) -> None:
        if trainer.world.rank == 1:
            during(trainer, 2, ask)

    assert train(2, tmp_path, "training.steps=4", double=False, before=before, timeout=400) == ["stopped"] * 2
    assert steps_of(tmp_path) == [2]
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "stopped"


def test_nan_of_one_process_ends_all_and_the_evidence_tells_whose_it_was(tmp_path):
    """Broken: the evidence is that of rank 0, whose samples are good."""

    def spoil(microbatches: list) -> None:
        for part in microbatches[0].parts:
            part.latents[-1] = float("nan")

    def before(trainer: Trainer) -> None:
        if trainer.world.rank == 1:
            during(trainer, 2, spoil)

    outcomes = ended(2, tmp_path, *BATCHES, "training.steps=4", before=before)
    assert [outcome.code for outcome in outcomes] == [1, 1]  # of the test's children: they raised
    assert all("NotFiniteError: step 2" in outcome.error for outcome in outcomes)
    evidence = json.loads((tmp_path / "bad_step.json").read_text())
    first, second = evidence["ranks"]
    assert first["values"]["loss"] != "nan"
    assert second["values"]["loss"] == "nan"
    assert evidence["keys"] == [*first["keys"], *second["keys"]]
    assert len(set(evidence["keys"])) == len(evidence["keys"]) > len(second["keys"]) > 0
    assert steps_of(tmp_path) == [1]  # the state before it
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "failed"
