"""What one process meets alone reaches all, and nothing of it reaches the weights."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import CheckpointError, DataError, NotWrittenError
from core.training import checkpoint
from core.training.checkpoint import CheckpointStore
from core.training.distributed import World
from core.training.loader import Rejected
from core.training.records import read_lines
from core.training.trainer import Trainer
from tests.scale.runs import BATCHES, build, metrics
from tests.thinned import slow
from tests.worlds import Outcome, run, values

FIRST = ("training.steps=4", "training.save_every=2", "training.spikes.above=0")


def fit(folder: Path, *overrides: str, before=lambda trainer: None) -> list[Outcome]:
    def action(world: World) -> str:
        trainer = build(world, folder, *BATCHES, *FIRST, *overrides)
        before(trainer)
        return trainer.fit()

    return run(2, action, timeout=120)


def on_step(trainer: Trainer, step: int, change) -> None:
    """`change` the microbatches of a step in process 1 alone, before they are trained on."""
    plain = trainer.train_step

    def train_step(number, microbatches):
        changed = change(microbatches) if number == step and trainer.world.rank == 1 else microbatches
        return plain(number, changed)

    trainer.train_step = train_step


def test_nan_of_one_process_leaves_all_weights_untouched_with_the_evidence_of_all(tmp_path):
    """[10] Fails where a process looks at its own values: the other one goes on, and waits for ever."""

    def spoil(microbatches):
        microbatches[0].parts[0].latents.fill_(float("nan"))
        return microbatches

    first, second = fit(tmp_path, before=lambda trainer: on_step(trainer, 3, spoil))
    assert first.error == second.error
    assert first.error.startswith("NotFiniteError: step 4 (")
    assert CheckpointStore(tmp_path / "checkpoints").latest() == 3
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3]
    evidence = json.loads((tmp_path / "bad_step.json").read_text())
    assert [len(rank["keys"]) for rank in evidence["ranks"]] in ([4, 4], [2, 2])
    assert [rank["values"]["loss"] == "nan" for rank in evidence["ranks"]] == [False, True]


def test_data_that_one_process_cannot_read_end_all_with_its_words(tmp_path):
    """Broken: without `errors_shared`, process 0 says that its connection was closed."""

    def refuse(microbatches):
        raise DataError("image: 64 records in a row could not be used")

    first, second = fit(tmp_path, before=lambda trainer: on_step(trainer, 2, refuse))
    assert first.error == second.error == "DataError: image: 64 records in a row could not be used"


def test_bad_records_of_one_process_are_noted_once_and_count_for_all(tmp_path):
    def reject(microbatches):
        found = tuple(Rejected("image", f"k{i}", f"file {i}", "torn", i, i + 9) for i in range(2))
        return [replace(microbatches[0], rejected=found)]

    assert [outcome.value for outcome in fit(tmp_path / "a", before=lambda t: on_step(t, 1, reject))] == [
        "finished"
    ] * 2
    assert [entry["key"] for entry in read_lines(tmp_path / "a" / "quarantine.jsonl")] == ["k0", "k1"]
    stopped = fit(tmp_path / "b", "training.data_limit=1", before=lambda t: on_step(t, 1, reject))
    assert all("2 records could not be used, more than data_limit 1" in outcome.error for outcome in stopped)


def test_a_full_disk_of_one_process_is_met_by_all_and_the_next_save_works(tmp_path):
    """[22] Process 1 cannot write its file of the first save, and rank 0 not the manifest of the third. Fails where an
    error of rank 0 at the end of a save stays its own."""

    def full(trainer: Trainer) -> None:
        plain, saves = checkpoint.save, []

        def save(*arguments, **named):
            saves.append(1)
            if trainer.world.rank == 1 and len(saves) == 1:
                named["storage_writer"].path = Path("/proc/no-such-folder")
            return plain(*arguments, **named)

        manifest, made = checkpoint.write_manifest, []

        def write_manifest(folder, step, files):
            made.append(step)
            if step == 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(folder))
            manifest(folder, step, files)

        checkpoint.save, checkpoint.write_manifest = save, write_manifest
        publish = trainer.store.publish

        def noted(step, *arguments):
            try:
                return publish(step, *arguments)
            except NotWrittenError:
                with (tmp_path / f"failed-{trainer.world.rank}").open("a") as file:
                    file.write(f"{step} ")
                raise

        trainer.store.publish = noted

    outcomes = fit(tmp_path, "training.save_every=1", before=full)
    assert values(outcomes) == ["finished"] * 2
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [2, 4]
    assert [(tmp_path / f"failed-{rank}").read_text() for rank in range(2)] == ["1 3 ", "1 3 "]
    for step in (1, 3):
        assert f"checkpoint of step {step} could not be saved" in outcomes[0].text
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_request_to_one_process_stops_all_after_the_same_step_with_a_checkpoint(tmp_path):
    def ask(microbatches):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return microbatches

    outcomes = fit(tmp_path, before=lambda trainer: on_step(trainer, 2, ask))
    assert values(outcomes) == ["stopped"] * 2
    assert CheckpointStore(tmp_path / "checkpoints").latest() == len(metrics(tmp_path)) == 3
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "stopped"


@pytest.mark.parametrize("size", [1, slow(2)])
def test_a_checkpoint_without_a_slot_of_the_optimizer_is_refused_with_its_name(size, tmp_path):
    """[2] Fails where the slots are not compared: the optimizer of the next step says KeyError: 'exp_avg'."""
    small = ("streams.video=null", "streams.audio=null", "streams.image.batch=2", "training.steps=2")

    def action(world: World) -> str:
        trainer = build(world, tmp_path, *small)
        plain, name = trainer.state, "media_in.image.weight"

        def state():
            found = plain()
            del found["optimizer"][name]["exp_avg"]
            return found

        trainer.state = state
        trainer.fit()
        again = build(world, tmp_path, *small, "training.steps=3")
        with pytest.raises(CheckpointError) as caught:
            again.resume()
        return str(caught.value)

    for said in values(run(size, action, timeout=200)):
        assert said.endswith("step-00000002: the optimizer's state of media_in.image.weight has no exp_avg")


@pytest.mark.slow
def test_a_second_start_in_the_folder_of_a_run_is_refused_in_every_process(tmp_path):
    from core.training.lock import FolderLock

    tmp_path.mkdir(exist_ok=True)
    lock = FolderLock(tmp_path)
    outcomes = fit(tmp_path)
    lock.release()
    assert all("is in use by another process" in outcome.error for outcome in outcomes)


@pytest.mark.slow
def test_the_network_that_rank_0_looks_at_has_the_weights_of_all(tmp_path):
    seen = tmp_path / "seen.pt"

    class Look:
        name, every = "look", 2

        def is_done(self, step):
            return False

        def forget(self, step): ...

        def __call__(self, step, student, teacher, trackers):
            torch.save((step, student.state_dict(), teacher.state_dict()), seen)

    def action(world: World) -> str:
        from core.training.sharding import shell

        trainer = build(world, tmp_path / "run", *BATCHES, "training.steps=2")
        trainer.hooks = [Look()]
        if world.is_first:
            whole = build(World(), tmp_path / "other", *BATCHES).student
            trainer.shells = [shell(whole), shell(whole)]
        return trainer.fit()

    assert values(run(2, action, timeout=120)) == ["finished"] * 2
    step, *networks = torch.load(seen)
    assert step == 2
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    for part, network in zip(("student", "teacher"), networks, strict=True):
        weights = store.load_weights(2, part)
        assert weights.keys() == network.keys()
        assert all(torch.equal(weights[name], network[name]) for name in weights)
