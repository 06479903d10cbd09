"""Kinds of optimizers, which parameters each of them trains, and learning rates as functions of the step."""

from __future__ import annotations

import importlib.util
import math
import pickle
from fnmatch import fnmatch

import pytest
import torch
from torch import nn

from configs.build import build_trainer
from configs.load import load_config
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore, digest
from core.training.optim import KINDS, OPTIMIZERS, OptimizerConfig, build_optimizer, hidden_matrices, optimizers_of
from core.training.state import restore, training_state
from tests.tools.tiny import CONFIG


def test_cosine_falls_from_the_warmup_to_the_least_rate():
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup=10, min_lr=0.1)
    assert config.problems() == []
    rates = [config.lr_at(step, 110) for step in range(110)]
    assert rates[:11] == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[35] == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi / 4)))
    assert rates[109] == pytest.approx(0.1, abs=3e-4)
    assert config.lr_at(110, 110) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert OptimizerConfig(lr=1.0, schedule="cosine", warmup=10).lr_at(4, 5) == 0.5  # all of the run is warmup


@pytest.mark.parametrize(("decay", "half"), [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))])
def test_warmup_stable_decay(decay, half):
    config = OptimizerConfig(lr=1.0, schedule="wsd", warmup=10, cooldown=20, decay=decay, min_lr=0.2)
    assert config.problems() == []
    rates = [config.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:81]) == {1.0}
    assert rates[90] == pytest.approx(0.2 + 0.8 * half)
    assert config.lr_at(100, 100) == pytest.approx(0.2)


def test_linear_decay_to_zero_is_the_cooldown_of_the_constant_schedule():
    plain = OptimizerConfig(warmup=3, cooldown=7)
    stable = OptimizerConfig(warmup=3, cooldown=7, schedule="wsd", decay="linear")
    for step in range(30):
        assert stable.lr_at(step, 30) == pytest.approx(plain.lr_at(step, 30))


@pytest.mark.parametrize(
    ("config", "reads"),
    [
        (OptimizerConfig(), False),
        (OptimizerConfig(warmup=5), False),
        (OptimizerConfig(cooldown=5), True),
        (OptimizerConfig(schedule="cosine"), True),
        (OptimizerConfig(schedule="wsd", cooldown=5), True),
    ],
)
def test_whether_a_rate_depends_on_the_length_of_the_run(config, reads):
    assert config.reads_length() is reads
    assert any(config.lr_at(step, 20) != config.lr_at(step, 40) for step in range(20)) is reads


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "muon", "momentum": 1.0}, "momentum: 1.0 must lie in [0, 1)"),
        ({"schedule": "wsd"}, "cooldown: 0, but schedule 'wsd' ends in a fall"),
        ({"schedule": "wsd", "cooldown": 3, "decay": "sqrt"}, "decay: 'sqrt' is not one of linear, 1-sqrt"),
        ({"schedule": "cosine", "min_lr": 1.0}, "min_lr: 1.0 must not be above lr, 0.0001"),
        ({"schedule": "wsd", "cooldown": 3, "min_lr": -1e-5}, "min_lr: -1e-05 must not be negative"),
        ({"cooldown": -1}, "cooldown: -1 must not be negative"),
        ({"lr": 0.0}, "lr: 0.0 must be above 0"),
        ({"kind": "muon", "warmup": -2}, "warmup: -2 must not be negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, expected):
    (problem,) = OptimizerConfig(**settings).problems()
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("kind: adam", "kind: 'adam' is not one of adamw, muon, adamw8bit. Did you mean: 'adamw'?"),
        ("schedule: cosin", "schedule: 'cosin' is not one of constant, cosine, wsd. Did you mean: 'cosine'?"),
        ("momentum: 0.9", "momentum: unknown key of kind 'adamw'; allowed: *. It belongs to kind muon."),
        (
            "schedule: cosine, cooldown: 5",
            "cooldown: unknown key of schedule 'cosine'; *belongs to schedule constant, wsd",
        ),
        ("kind: muon, decay: linear", "decay: unknown key of schedule 'constant'; *It belongs to schedule wsd."),
        ("min_lr: 1e-5", "min_lr: unknown key of schedule 'constant'; *It belongs to schedule cosine, wsd."),
        ("kind: muon, momentun: 0.9", "momentun: unknown key of kind 'muon'; *Did you mean: 'momentum'?"),
    ],
)
def test_settings_of_another_kind_or_schedule_are_unknown(settings, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, [f"training.optimizer={{{settings}}}"])
    (problem,) = caught.value.problems
    assert fnmatch(problem, f"*: training.optimizer.{expected.replace('[', '[[]').replace('?', '[?]')}*")


def test_another_kind_keeps_what_both_have():
    """Of a file below: its learning rate and warmup, and no setting that only the former kind had."""
    base = ["training.optimizer={kind: muon, lr: 0.01, warmup: 3, cooldown: 2, momentum: 0.9}"]
    assert load_config(CONFIG, base).training.optimizer == OptimizerConfig(
        kind="muon", lr=0.01, warmup=3, cooldown=2, momentum=0.9
    )
    preset = CONFIG.with_name("tiny.yaml")
    now = load_config(preset, ["training.optimizer.kind=muon", "training.optimizer.schedule=cosine"]).training.optimizer
    assert now == OptimizerConfig(kind="muon", schedule="cosine", lr=3e-3)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_combination_is_a_dataclass_that_can_be_pickled(kind):
    config = OptimizerConfig(**dict(zip(("kind", "schedule"), kind, strict=True)))
    assert type(config) is OPTIMIZERS[kind]
    assert pickle.loads(pickle.dumps(config)) == config
    assert hasattr(config, "momentum") is (kind[0] == "muon")
    assert hasattr(config, "cooldown") is (kind[1] != "cosine")


def test_eight_bits_without_the_package_are_refused_by_its_name(monkeypatch):
    monkeypatch.setattr("core.training.optim.find_spec", lambda name: None)
    (problem,) = OptimizerConfig(kind="adamw8bit").problems()
    assert problem == (
        "kind: 'adamw8bit' needs the package bitsandbytes, which is not installed: pip install -e '.[optim8bit]'. "
        "training.optimizer.kind adamw and muon work without it"
    )


@pytest.mark.parametrize(
    ("config", "tops", "layers"),
    [
        (
            "tiny.yaml",
            {"double_blocks", "single_blocks", "context"},
            {"qkv", "attention_out", "out", "linear1", "linear2"},
        ),
        ("tiny_sit.yaml", {"blocks"}, {"qkv", "proj", "fc1", "fc2"}),
    ],
)
def test_muon_trains_the_matrices_of_all_blocks_and_nothing_else(config, tops, layers, tmp_path):
    loaded = load_config(CONFIG.with_name(config), [f"run={tmp_path}", "training.optimizer.kind=muon"])
    trainer = build_trainer(loaded, CONFIG.parent)
    names = {parameter: name for name, parameter in trainer.student.named_parameters()}
    muon, adamw = (
        [names[p] for group in part.param_groups for p in group["params"]] for part in trainer.optimizer.parts
    )
    assert sorted(muon + adamw) == sorted(names.values())
    assert {name.split(".")[0] for name in muon} == tops
    assert {name.split(".")[-2] for name in muon} == layers
    for name in ("media_in", "table", "position", "null", "time", "modulation", "media_out", "projector", "embed"):
        assert not [muon_name for muon_name in muon if name in muon_name]


def test_muon_needs_blocks():
    with pytest.raises(ConfigError, match="the model has none"):
        build_optimizer(OptimizerConfig(kind="muon"), nn.Linear(3, 3))


class Blocks(nn.Module):
    """Two blocks with a matrix large enough for 8-bit moments, and an output layer that one of its users skips."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.out, self.waiting = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.out(x)


def stepped(model, optimizer, seed: int) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(torch.randn(5, 64, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()


def available(kind: str) -> bool:
    return kind != "adamw8bit" or importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.skipif(not available(k), reason=k)) for k in KINDS])
def test_every_kind_goes_on_from_a_checkpoint_bit_for_bit(kind, tmp_path):
    config = OptimizerConfig(kind=kind, lr=1e-2, weight_decay=0.1)
    models = [Blocks(), Blocks()]
    whole, resumed = (build_optimizer(config, model) for model in models)
    for seed in range(3):
        stepped(models[0], whole, seed)
    store = CheckpointStore(tmp_path)
    store.publish(3, training_state(models[0], models[0], whole), {})
    for parameter in models[1].parameters():
        parameter.data.zero_()
    restore(store, 3, models[1], models[1], resumed)
    states = [
        training_state(model, model, optimizer) for model, optimizer in zip(models, (whole, resumed), strict=True)
    ]
    assert digest(states[0]) == digest(states[1])
    assert "waiting.weight" not in states[0]["optimizer"]
    assert "blocks.0.weight" in states[0]["optimizer"]
    for seed in range(3, 6):
        stepped(models[0], whole, seed)
        stepped(models[1], resumed, seed)
    states = [
        training_state(model, model, optimizer) for model, optimizer in zip(models, (whole, resumed), strict=True)
    ]
    assert digest(states[0]) == digest(states[1])


def test_muon_steps_are_torchs_own_and_the_rest_is_adamw():
    config = OptimizerConfig(kind="muon", lr=1e-2, weight_decay=0.1, momentum=0.9)
    ours, theirs = Blocks(), Blocks()
    optimizer = build_optimizer(config, ours)
    hidden = dict(hidden_matrices(theirs))
    assert sorted(hidden) == ["blocks.0.weight", "blocks.1.weight"]
    muon = torch.optim.Muon(hidden.values(), lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    others = [p for name, p in theirs.named_parameters() if name not in hidden]
    adamw = torch.optim.AdamW(others, lr=1e-2, weight_decay=0.1, fused=True)
    for seed in range(3):
        stepped(ours, optimizer, seed)
        muon.zero_grad()
        stepped(theirs, adamw, seed)
        muon.step()
    assert digest({"student": dict(ours.named_parameters())}) == digest({"student": dict(theirs.named_parameters())})
    assert len(optimizers_of(optimizer)) == 2


def test_the_default_is_one_fused_adamw_over_all_parameters():
    model = Blocks()
    optimizer = build_optimizer(OptimizerConfig(), model)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizers_of(optimizer) == (optimizer,)
    (group,) = optimizer.param_groups
    assert group["fused"]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.0)
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))
