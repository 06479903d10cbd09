"""How runs of several processes end: signals, hangs, values that are not finite, spikes, and who is slow."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.training import trainer as trainer_module
from core.training import watchdog
from core.training.checkpoint import CheckpointStore
from core.training.distributed import World
from core.training.jsonl import read_lines
from core.training.trainer import Trainer
from tests.scale.runs import BATCHES, build, metric_difference, metrics, train, weight_difference
from tests.worlds import Outcome, run, values

LINUX = pytest.mark.skipif(not Path("/proc").exists(), reason="elsewhere a thread ends the process")


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


@pytest.mark.parametrize(
    ("ranks", "times"), [((1,), 1), pytest.param((0, 1), 2, marks=pytest.mark.slow)], ids=["one", "all twice"]
)
def test_a_signal_to_one_or_twice_to_all_stops_all_behind_the_same_step(ranks, times, tmp_path):
    """[17] Fails where each process looks at its own flag: the others wait for it in their next exchange."""

    def ask(_: Any) -> None:
        for number in range(times):
            time.sleep(0.4 * bool(number))
            os.kill(os.getpid(), signal.SIGTERM)

    def before(trainer: Trainer) -> None:
        if trainer.world.rank in ranks:
            during(trainer, 2, ask)

    assert train(2, tmp_path, "training.steps=4", double=False, before=before, timeout=400) == ["stopped"] * 2
    assert steps_of(tmp_path) == [2]
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "stopped"
    if times == 2:
        assert train(2, tmp_path, "training.steps=4", double=False) == ["finished"] * 2
        assert steps_of(tmp_path)[-1] == 4


def test_nan_of_one_process_ends_all_and_the_evidence_tells_whose_it_was(tmp_path):
    """[10] Fails where a process looks at its own values alone, and where the evidence is that of rank 0."""

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


@pytest.mark.slow
def test_spikes_are_those_of_a_run_in_one_process(tmp_path):
    audio = ("streams.image=null", "streams.video=null", "streams.audio.batch=4", "training.steps=9")
    spikes = (*audio, "training.spikes={above: 8, window: 8, allowed: 2}")

    def before(trainer: Trainer) -> None:
        during(trainer, 6, lambda microbatches: [part.latents.mul_(100.0) for part in microbatches[0].parts])

    for size in (1, 2):
        assert train(size, tmp_path / str(size), *spikes, before=before) == ["finished"] * size
    assert [entry["step"] for entry in metrics(tmp_path / "2") if "spike" in entry] == [6]
    assert metric_difference(tmp_path / "1", tmp_path / "2") < 1e-12
    assert weight_difference(tmp_path / "1", tmp_path / "2") < 1e-9
    names = sorted(path.name for path in (tmp_path / "2" / "spikes").iterdir())
    assert names == ["step-00000006-rank-0.safetensors", "step-00000006-rank-1.safetensors", "step-00000006.json"]
    evidence = [json.loads((tmp_path / n / "spikes" / "step-00000006.json").read_text()) for n in ("1", "2")]
    assert evidence[0]["keys"] == evidence[1]["keys"]


@LINUX
@pytest.mark.slow
def test_a_process_that_never_returns_from_a_restore_ends_all_with_their_stacks(tmp_path, monkeypatch):
    """[21] Fails with one timeout of hours for everything, or none."""
    assert train(2, tmp_path, "training.steps=2", double=False) == ["finished"] * 2
    monkeypatch.setattr(watchdog, "_GRACE", 1.0)
    plain = trainer_module.restore

    def never_returns(store: CheckpointStore, *arguments: Any) -> None:
        if store.world.rank == 1:
            time.sleep(100)
        plain(store, *arguments)

    monkeypatch.setattr(trainer_module, "restore", never_returns)
    started = time.monotonic()
    limits = "training.watchdog={start: 20, step: 100}"
    outcomes = ended(2, tmp_path, "training.steps=4", limits, before=lambda trainer: None)
    assert time.monotonic() - started < 100
    assert [outcome.code for outcome in outcomes] == [75, 75]
    assert "never_returns" in (tmp_path / "stacks" / "rank-1.txt").read_text()
    assert "Thread" in (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert "hung: no progress" in outcomes[0].text
    assert steps_of(tmp_path) == [2]


@pytest.mark.slow
def test_the_process_whose_data_are_slow_has_a_name(tmp_path):
    def before(trainer: Trainer) -> None:
        plain = trainer.loader.steps

        def steps(first: int, last: int) -> Any:
            for item in plain(first, last):
                time.sleep(0.3 * trainer.world.rank)
                yield item

        trainer.loader.steps = steps

    sizes = ("training.steps=4", "training.compare_ranks_every=2")
    assert values(ended(2, tmp_path, *sizes, before=before)) == ["finished"] * 2
    lines = read_lines(tmp_path / "ranks.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["waited"]["rank"] == 1
        assert line["waited"]["max"] > line["waited"]["min"] + 0.25
        assert line["seconds"].keys() == {"min", "median", "max", "rank"}
