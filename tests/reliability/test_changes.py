"""A run that goes on with other settings: from the newest checkpoint on, noted, and still bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from configs.build import build_trainer
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from core.training.config import stored_instance, with_value
from core.training.history import past
from core.training.mixing import MixPiece, StreamMix
from core.training.records import read_lines
from tests.reliability.test_resume import stop_after
from tests.tools.tiny import CONFIG, published, result, train
from tools.cli import main

LR = "training.optimizer.lr"


def changes(run: Path) -> list[tuple]:
    entries = json.loads((run / "run.json").read_text()).get("changes", [])
    return [(entry["step"], entry["key"], entry.get("old"), entry.get("new")) for entry in entries]


def lrs(run: Path) -> list[float]:
    return [entry["lr"] for entry in read_lines(run / "metrics.jsonl")]


@pytest.fixture
def half(tmp_path, monkeypatch) -> Path:
    """A run that was stopped after 3 of 6 steps."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train(tmp_path / "run") == 75
    return tmp_path / "run"


def test_a_changed_learning_rate_holds_from_the_checkpoint_on_and_the_plain_command_keeps_it(half, monkeypatch, capsys):
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert train(half, "--change", f"{LR}=1e-3", "--change", "training.optimizer.clip=0.5") == 75
    assert f"from step 3 on: {LR} 0.003 -> 0.001" in capsys.readouterr().err
    assert train(half) == 0
    assert f"{LR}: 0.001, changed at step 3 from 0.003" in capsys.readouterr().err
    assert lrs(half) == [0.003] * 3 + [0.001] * 3
    assert changes(half) == [(3, "training.optimizer.clip", 1.0, 0.5), (3, LR, 0.003, 0.001)] or changes(half) == [
        (3, LR, 0.003, 0.001),
        (3, "training.optimizer.clip", 1.0, 0.5),
    ]
    entry = json.loads((half / "run.json").read_text())["changes"][0]
    assert entry["time"]
    assert isinstance(entry["command"], list)
    assert main(["inspect", str(half)]) == 0
    assert f"changed   after step 3: {LR} 0.003 -> 0.001" in capsys.readouterr().out


def test_a_changed_run_that_is_killed_has_the_bits_of_one_that_is_not(tmp_path, monkeypatch):
    change = ("--change", "streams.image.batch=2", "--change", "streams.audio.weight=2")
    for name in ("whole", "cut"):
        with monkeypatch.context() as patch:
            stop_after(patch, 3)
            assert train(tmp_path / name) == 75
    assert train(tmp_path / "whole", *change) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(tmp_path / "cut", *change) == 75
    assert train(tmp_path / "cut") == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


@pytest.mark.slow
def test_the_same_change_again_and_a_change_back(half, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(half, "--change", f"{LR}=1e-3") == 75
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert train(half, "--change", f"{LR}=1e-3") == 75  # the arrow-up key
    assert "the run has these settings already" in capsys.readouterr().err
    assert train(half, "--change", f"{LR}=3e-3") == 0
    assert lrs(half) == [0.003] * 3 + [0.001] * 2 + [0.003]
    assert [entry[0] for entry in changes(half)] == [3, 5]


def test_a_third_value_without_a_change_is_refused_with_what_to_type(half, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert train(half, "--change", f"{LR}=1e-3") == 75
    before = (half / "config.yaml").read_bytes()
    assert train(half, f"{LR}=5e-4") == 2
    message = capsys.readouterr().err
    assert f"{LR}: 0.001 since step 3, 0.0005 now" in message
    assert f"--change {LR}=0.0005" in message
    assert (half / "config.yaml").read_bytes() == before
    assert train(half, f"{LR}=1e-3") == 0  # what the run has may be written down


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("trunk.mmdit.heads=4", "trunk.mmdit.heads: 2 cannot become 4: the weights were trained in this network"),
        ("trunk.mmdit.rope_theta=100", "mean nothing in another"),
        ("streams.video=null", "the order of its data goes on behind what its streams have consumed"),
        ("condition.kind=label", "the weights read this kind of condition"),
        ("training.posthoc_ema.every=2", "its averages reach back to the first step"),
        ("condition.text.vocabulary=128", "condition.text.vocabulary: 64 cannot become 128"),
        ("streams.audio.media.hop=32", "it is what a token of the weights stands for"),
        ("streams.image.media.patch=2", "it is what a token of the weights stands for"),
        ("training.optimizer.lrr=1", "unknown key"),
        ("training.optimizer.lr=-1", "must be above 0"),
        ("training.accumulate=3", "batch: 2 is less than training.accumulate 3"),
    ],
)
def test_what_the_weights_cannot_follow_is_refused_with_the_reason(change, reason, tiny_run, capsys):
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(tiny_run, "--change", change, "--change", "training.steps=9") == 2
    message = capsys.readouterr().err
    assert reason in message
    assert "Traceback" not in message
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before


def test_a_change_needs_a_run_and_steps_to_come(tmp_path, tiny_run, capsys):
    assert train(tmp_path / "new", "--change", f"{LR}=1e-3") == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert train(tiny_run, "--change", f"{LR}=1e-3") == 2
    assert "all 6 steps of" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["flow_matching", "self_flow_as", "layersync"])
def test_another_method_drops_or_starts_the_projector_and_says_so(method, half, capsys):
    more = ("--change", "streams.video.modes={first_frame: 0}") if method == "self_flow_as" else ()
    capsys.readouterr()
    assert train(half, "--change", f"method={method}", *more) == 0
    shown = capsys.readouterr().err
    if method == "self_flow_as":
        assert "projector" not in shown
        assert "noising.attention_separation False -> True" in shown
    else:
        assert "projector: is no longer needed and left behind" in shown
    terms = [set(entry) for entry in read_lines(half / "metrics.jsonl")]
    assert "align/teacher" in terms[2]
    assert ("align/teacher" in terms[4]) == (method == "self_flow_as")


def test_a_method_with_a_projector_starts_it_fresh_also_after_a_kill(tmp_path, monkeypatch, capsys):
    def begin(run: Path) -> None:
        with monkeypatch.context() as patch:
            stop_after(patch, 3)
            assert train(run, "method=flow_matching") == 75

    begin(tmp_path / "whole")
    begin(tmp_path / "cut")
    capsys.readouterr()
    assert train(tmp_path / "whole", "method=flow_matching", "--change", "method=self_flow") == 0
    assert "projector: starts from its initial weights" in capsys.readouterr().err
    trainer_step = "core.training.trainer.Trainer.train_step"
    with monkeypatch.context() as patch:  # killed before the first checkpoint of the changed run
        patch.setattr(trainer_step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train(tmp_path / "cut", "method=flow_matching", "--change", "method=self_flow") == 130
    assert train(tmp_path / "cut", "method=flow_matching") == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_longer_run_with_a_cooldown_is_a_change(tmp_path, capsys):
    cooldown = "training.optimizer.cooldown=1"
    assert train(tmp_path, "training.steps=2", cooldown) == 0
    assert train(tmp_path, "training.steps=2", cooldown, "--change", "training.steps=4") == 0
    assert published(tmp_path)[-1] == 4
    assert train(tmp_path, "training.steps=2", cooldown) == 0
    assert "already finished: all 4 steps are done" in capsys.readouterr().out


def test_another_kind_of_optimizer_starts_its_state_anew(half, monkeypatch, capsys):
    """Told by the checkpoint's own settings, so that any kind that is added counts."""
    from configs import resume as anew

    monkeypatch.setattr(anew, "KIND", "training.optimizer.eps")
    capsys.readouterr()
    assert train(half, "--change", "training.optimizer.eps=1e-6") == 0
    assert "its state starts anew" in capsys.readouterr().err
    assert published(half)[-1] == 6


def test_all_of_a_run_can_be_changed_that_its_weights_can_follow(half, capsys):
    asked = (
        "streams.image.timestep={kind: logit_normal}",
        "streams.image.loss_weight=0.5",
        "streams.video.mask_ratio=0.3",
        "noising.mask=exact",
        "alignment.ema_teacher.weight=0.5",
        "training.ema.decay=0.8",
        "training.accumulate=2",
        "training.optimizer.warmup=5",
        "condition.cfg_dropout=0.2",
        "seed=4",
    )
    assert train(half, *(part for change in asked for part in ("--change", change))) == 0
    assert {entry[1] for entry in changes(half)} == {change.partition("=")[0] for change in asked} - {
        "streams.image.timestep"
    } | {f"streams.image.timestep.{name}" for name in ("kind", "mean", "std")}
    trainer = build_trainer(load_config(half / "config.yaml", ["training.steps=8"]), CONFIG.parent)
    assert trainer.loader.dataset.mix.first_position(3) >= 0


def test_positions_go_on_behind_what_was_consumed():
    shares, before, after = {"a": 1.0, "b": 1.0}, {"a": 4, "b": 2}, {"a": 8, "b": 3}
    plain = StreamMix(0, shares, before)
    changed = StreamMix(0, {"a": 1.0, "b": 3.0}, after, [MixPiece(5000, 0, shares, before)])
    assert [changed.first_position(s) for s in range(0, 5000, 7)] == [
        plain.first_position(s) for s in range(0, 5000, 7)
    ]
    taken = {"a": 0, "b": 0}
    for step in range(9000):
        name = changed.stream(step)
        if step > 8900 or step in (4999, 5000, 5001):
            assert changed.first_position(step) == taken[name]
        taken[name] += (before if step < 5000 else after)[name]


def test_the_past_of_a_run_is_told_from_its_changes():
    now = {"a": {"x": 3}, "b": None}
    entries = [
        {"step": 2, "key": "a.x", "old": 1, "new": 2},
        {"step": 5, "key": "a.x", "old": 2, "new": 3},
        {"step": 5, "key": "b", "old": {"c": 1}, "new": None},
    ]
    assert [(p.until, p.config) for p in past(now, entries)] == [
        (2, {"a": {"x": 1}, "b": {"c": 1}}),
        (5, {"a": {"x": 2}, "b": {"c": 1}}),
    ]


def test_settings_that_an_older_version_did_not_have_count_as_their_defaults(half, capsys):
    text = (half / "config.yaml").read_text()
    older = text.replace("  compile: auto\n", "").replace("    similarity: cosine\n", "")
    assert older.count("\n") == text.count("\n") - 2
    (half / "config.yaml").write_text(older)
    assert train(half, "training.precision=bf16") == 2
    assert "training.compile: '(not there)'" not in capsys.readouterr().err
    assert train(half, "alignment.ema_teacher.similarity=l1") == 2
    assert train(half) == 0
    assert {entry[1:] for entry in changes(half)} == {
        ("training.compile", None, "auto"),
        ("alignment.ema_teacher.similarity", None, "cosine"),
    }


def test_settings_that_another_kind_has_were_not_read_and_may_be_stored(half):
    """As of a run that was begun before each kind had settings of its own. Broken: a resume that refuses it."""
    text = (half / "config.yaml").read_text()
    older = text.replace("  optimizer:\n", "  optimizer:\n    momentum: 0.95\n    decay: 1-sqrt\n")
    assert older.count("\n") == text.count("\n") + 2
    (half / "config.yaml").write_text(older)
    assert train(half) == 0
    stored = (half / "config.yaml").read_text()
    assert "momentum" not in stored
    assert {entry[1] for entry in changes(half)} == {"training.optimizer.momentum", "training.optimizer.decay"}
    plain = yaml.safe_load(older)
    assert stored_instance(Config, plain) == stored_instance(Config, yaml.safe_load(stored))
    with pytest.raises(ConfigError, match=r"training\.optimizer\.momentun: unknown key"):
        stored_instance(Config, with_value(plain, "training.optimizer.momentun", 0.9))
