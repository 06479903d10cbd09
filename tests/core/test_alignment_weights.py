"""The weight of an alignment term over the steps, and what is no longer run once it has ended."""

from __future__ import annotations

import pytest
import torch

from configs.build import build_trainer
from configs.load import load_config
from core.alignment.base import AlignmentInputs
from core.alignment.dispersive import DispersiveConfig
from core.alignment.ema_teacher import EmaTeacherConfig
from core.alignment.external import ExternalConfig
from core.alignment.layer_sync import LayerSync, LayerSyncConfig
from core.alignment.weights import factor_at, is_over
from core.training.records import read_lines
from core.types import TrunkOutput
from tests.tools.tiny import CONFIG, train

KINDS = [EmaTeacherConfig, ExternalConfig, LayerSyncConfig, DispersiveConfig]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_rises_stays_and_ends(kind):
    config = kind(warmup=4, until=10)
    assert config.problems() == []
    assert [factor_at(config, step) for step in range(12)] == [0.25, 0.5, 0.75, *[1.0] * 7, 0.0, 0.0]
    assert [is_over(config, step) for step in (0, 9, 10, 11)] == [False, False, True, True]
    assert {factor_at(kind(), step) for step in range(1000)} == {1.0}
    assert not is_over(kind(), 10**9)


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_that_cannot_be_are_refused(kind):
    assert kind(warmup=-1, until=-2).problems() == ["warmup: -1 must not be negative", "until: -2 must not be negative"]
    assert "until: 5 must be above warmup, 5" in kind(warmup=5, until=5).problems()[0]


def test_the_published_fall_of_sra_has_the_rise_and_the_end_on_top():
    config = EmaTeacherConfig(weight=0.2, constant_steps=4, decay_10x_steps=10, warmup=2, until=30)
    assert config.weight_at(0) == pytest.approx(0.1)
    assert config.weight_at(3) == pytest.approx(0.2)
    assert config.weight_at(14) == pytest.approx(0.02)
    assert config.weight_at(30) == 0


def weighted(entry: dict, term: str) -> float:
    """What the weight of the term in this step was, from the losses of its step."""
    return (entry["loss"] - entry[f"flow/{entry['stream']}"]) / entry[term]


@pytest.mark.parametrize(
    ("method", "section", "term", "weight"),
    [
        ("self_flow", "ema_teacher", "align/teacher", 0.8),
        ("dispersive", "dispersive", "align/dispersive", 0.25),
    ],
)
def test_the_loss_of_every_step_has_the_weight_of_that_step(method, section, term, weight, tmp_path):
    schedule = (f"alignment.{section}.warmup=2", f"alignment.{section}.until=4")
    assert train(tmp_path, f"method={method}", *schedule) == 0
    entries = read_lines(tmp_path / "metrics.jsonl")
    factors = [weighted(entry, term) / weight for entry in entries[:4]]
    assert factors == pytest.approx([0.5, 1, 1, 1], abs=2e-4)
    for entry in entries[4:]:
        assert term not in entry
        assert entry["loss"] == entry[f"flow/{entry['stream']}"]


def test_the_weight_of_layer_sync_at_a_step():
    features = TrunkOutput(None, {2: torch.randn(1, 3, 4), 4: torch.randn(1, 3, 4)}, {})
    term = LayerSync(LayerSyncConfig(weight=0.2, warmup=4, layer=2, target_layer=4), 4)
    loss_mask = torch.ones(1, 3, dtype=torch.bool)
    weights = [
        term(AlignmentInputs(features, None, {}, loss_mask, 3.0, step))["align/layer_sync"].weight for step in range(5)
    ]
    assert weights == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])


def test_the_teacher_is_not_run_once_its_weight_is_zero_for_good(tmp_path):
    settings = [f"run={tmp_path}", "alignment.ema_teacher.until=3"]
    trainer = build_trainer(load_config(CONFIG, settings), CONFIG.parent)
    forwards = []
    trainer.teacher.register_forward_hook(lambda *_: forwards.append(trainer.step))
    trainer.fit()
    assert forwards == [0, 1, 2]


@pytest.mark.slow
def test_a_run_resumed_behind_the_end_goes_on_with_the_same_bits(tmp_path):
    from tests.tools.tiny import result

    end = "alignment.ema_teacher.until=3"
    for name, lengths in (("whole", (6,)), ("cut", (2, 4, 6))):
        for steps in lengths:
            assert train(tmp_path / name, end, f"training.steps={steps}") == 0
    assert result(tmp_path / "whole") == result(tmp_path / "cut")


@pytest.mark.slow
def test_frozen_encoders_are_not_run_once_their_weight_is_zero_for_good(tmp_path):
    pytest.importorskip("transformers", reason="frozen encoders need transformers")
    from tests.tools.small_weights import encoder_settings, save_encoders

    save_encoders(tmp_path)
    names = ("image", "video", "audio")
    settings = ["method=repa", *encoder_settings(tmp_path, *names), "alignment.external.until=3"]
    trainer = build_trainer(load_config(CONFIG, [f"run={tmp_path / 'run'}", *settings]), CONFIG.parent)
    calls, plain = [], trainer.preprocess

    def preprocess(microbatch, targets=True):
        found = plain(microbatch, targets)
        calls.append((trainer.step, bool(found.targets)))
        return found

    trainer.preprocess = preprocess
    trainer.fit()
    assert calls == [(step, step < 3) for step in range(6)]
