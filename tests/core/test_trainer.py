"""The training loop on its own: accumulation, the guard, loss weights, saving, and the warning about the EMA."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.build import build_trainer
from configs.load import load_config
from core.errors import CheckpointError, NotFiniteError
from core.training.records import read_lines
from core.training.trainer import Trainer
from tests.tools.tiny import CONFIG, published, train


def build(run: Path, *overrides: str) -> Trainer:
    return build_trainer(load_config(CONFIG, [f"run={run}", *overrides]), CONFIG.parent)


def numbers(state: dict) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in state.items()}


def steps_in_float64(trainer: Trainer, count: int) -> list[dict]:
    """Metrics of the first steps, with networks and microbatches in float64."""
    trainer.student.double()
    trainer.teacher.double()
    found, preprocess = [], trainer.preprocess

    def in_float64(raw, targets=True):
        item = preprocess(raw, targets)
        return replace(item, drawn=as_float64(item.drawn), batch=as_float64(item.batch))

    trainer.preprocess = in_float64
    for step, microbatches in trainer.loader.steps(0, count):
        keys = [key for item in microbatches for key in item.keys]
        found.append(trainer.train_step(step, microbatches) | {"keys": keys})
    return found


def as_float64(item):
    from core.types import map_tensors

    return map_tensors(item, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    whole, halves = build(tmp_path / "one"), build(tmp_path / "two", "training.accumulate=2")
    one, two = steps_in_float64(whole, 5), steps_in_float64(halves, 5)
    for a, b in zip(one, two, strict=True):
        assert a.pop("keys") == b.pop("keys")
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name == "stream":
                assert value == b[name]
            else:
                assert value == pytest.approx(b[name], rel=1e-6), name  # losses are means in float32
    for (name, a), b in zip(whole.student.named_parameters(), halves.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def first_step(trainer: Trainer, step: int = 0) -> tuple[int, list]:
    return next(iter(trainer.loader.steps(step, step + 1)))


@pytest.mark.parametrize("where", ["loss", "gradient", "teacher", "infinity"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_value_that_is_not_finite_never_reaches_the_weights(where, accumulate, tmp_path, monkeypatch):
    trainer = build(tmp_path, f"training.accumulate={accumulate}")
    for step, microbatches in trainer.loader.steps(0, 2):
        trainer.train_step(step, microbatches)
    before = [numbers(model.state_dict()) for model in (trainer.student, trainer.teacher)]
    slots = numbers({f"{i}/{k}": v for i, s in trainer.optimizer.state_dict()["state"].items() for k, v in s.items()})

    if where == "teacher":
        with torch.no_grad():
            trainer.teacher.media_modulation.linear.weight.fill_(float("nan"))
        before[1] = numbers(trainer.teacher.state_dict())
    elif where == "gradient":  # the loss stays finite
        trainer.student.media_out["image"].weight.register_hook(lambda gradient: gradient * float("nan"))
        trainer.student.media_out["video"].weight.register_hook(lambda gradient: gradient * float("nan"))
        trainer.student.media_out["audio"].weight.register_hook(lambda gradient: gradient * float("nan"))
    else:
        plain, calls, value = trainer.objective, [], float("nan" if where == "loss" else "inf")

        def objective(*arguments):
            terms = plain(*arguments)
            calls.append(1)
            if len(calls) == accumulate:  # in the last microbatch only
                name = next(iter(terms))
                terms[name] = terms[name].__class__(terms[name].total * value, terms[name].count, terms[name].weight)
            return terms

        objective.reads_targets = plain.reads_targets
        monkeypatch.setattr(trainer, "objective", objective)

    step, microbatches = first_step(trainer, 2)
    with pytest.raises(NotFiniteError, match="The weights were not touched"):
        trainer.train_step(step, microbatches)
    assert [numbers(model.state_dict()) for model in (trainer.student, trainer.teacher)] == before
    after = {f"{i}/{k}": v for i, s in trainer.optimizer.state_dict()["state"].items() for k, v in s.items()}
    assert numbers(after) == slots
    evidence = json.loads((tmp_path / "bad_step.json").read_text())
    assert evidence["step"] == 2
    assert evidence["keys"] == [key for item in microbatches for key in item.keys]
    assert evidence["values"]["loss"] in ("nan", "inf") or where == "gradient"


def test_a_bad_step_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    plain = Trainer.train_step

    def train_step(self, step, microbatches):
        if step == 2:
            with torch.no_grad():
                self.student.media_out[microbatches[0].stream].bias.fill_(float("inf"))
        return plain(self, step, microbatches)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert train(tmp_path) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: step 3 (")
    assert "bad_step.json" in line
    assert [entry["step"] for entry in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert published(tmp_path) == []


def test_loss_weights_scale_the_whole_loss_of_their_steps(tmp_path):
    names = ("image", "video", "audio")
    plain = build(tmp_path / "plain")
    heavy = build(tmp_path / "heavy", *(f"streams.{name}.loss_weight=3" for name in names))
    one, three = (trainer.train_step(*first_step(trainer)) for trainer in (plain, heavy))
    assert three["loss"] == pytest.approx(3 * one["loss"])
    assert three["grad_norm"] == pytest.approx(3 * one["grad_norm"], rel=1e-4)
    assert three["align/teacher"] == one["align/teacher"]
    assert one["loss"] == pytest.approx(one[f"flow/{one['stream']}"] + 0.8 * one["align/teacher"])


def test_the_teacher_starts_as_a_copy_and_follows_by_the_decay(tmp_path):
    trainer = build(tmp_path)
    start = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    assert numbers(trainer.teacher.state_dict()) == numbers(start)
    trainer.train_step(*first_step(trainer))
    student = trainer.student.state_dict()
    assert any(not torch.equal(student[name], start[name]) for name in start)
    for name, value in trainer.teacher.state_dict().items():
        torch.testing.assert_close(value, (start[name] + student[name]) / 2)
    assert not trainer.teacher.training


@pytest.mark.parametrize(("decay", "warned"), [("0.9999", True), ("0.1", False)])
def test_an_average_that_is_too_long_for_the_run_is_warned_of_once(decay, warned, tmp_path, capsys):
    for steps in (10, 12):  # the second start resumes
        assert train(tmp_path, f"training.steps={steps}", f"training.ema.decay={decay}") == 0
    shown = capsys.readouterr().err
    assert shown.count("warning: training.ema.decay 0.9999 averages over 10000 steps") == int(warned)
    assert shown.count("warning") == int(warned)


def test_one_failed_save_is_reported_and_the_second_in_a_row_stops(tmp_path, monkeypatch, capsys):
    trainer = build(tmp_path, "training.save_every=1", "training.steps=4")
    publish, failing = trainer.store.publish, {1, 3, 4}

    def flaky(step, state, extra):
        if step in failing:
            raise CheckpointError(f"checkpoint {step}: No space left on device")
        return publish(step, state, extra)

    monkeypatch.setattr(trainer.store, "publish", flaky)
    with pytest.raises(CheckpointError, match="checkpoint 4"):
        trainer.fit()
    shown = capsys.readouterr()
    assert "checkpoint of step 1 could not be saved" in shown.out + shown.err
    assert published(tmp_path) == [2]


def test_a_failed_save_of_the_last_step_is_an_error(tmp_path, monkeypatch):
    trainer = build(tmp_path, "training.steps=2")

    def full(step, state, extra):
        raise CheckpointError("No space left on device")

    monkeypatch.setattr(trainer.store, "publish", full)
    with pytest.raises(CheckpointError, match="No space"):
        trainer.fit()


def test_the_learning_rate_of_a_step_is_written_beside_its_losses(tmp_path):
    assert train(tmp_path, "training.optimizer.warmup=4", "training.optimizer.cooldown=2") == 0
    entries = read_lines(tmp_path / "metrics.jsonl")
    assert [entry["lr"] for entry in entries] == pytest.approx([0.00075, 0.0015, 0.00225, 0.003, 0.003, 0.0015])
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    timings = read_lines(tmp_path / "timings.jsonl")
    assert all(0 <= entry["waited"] <= entry["seconds"] for entry in timings)
