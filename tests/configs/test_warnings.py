"""What a run is warned of where it is set, in the dry run and at the start of training."""

from __future__ import annotations

import pytest

from configs.load import load_config
from configs.warnings import warnings
from tests.tools.tiny import CONFIG, train
from tools.cli import main


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], None),
        (["training.optimizer.warmup=3", "training.optimizer.cooldown=3"], None),
        (["training.optimizer.warmup=6"], None),
        (
            ["training.optimizer.warmup=7"],
            "training.optimizer: with warmup 7 and cooldown 0 in 6 steps the learning rate",
        ),
        (["training.optimizer.warmup=5", "training.optimizer.cooldown=5"], "reaches 0.0018 and never the lr 0.003"),
        (["training.optimizer.cooldown=9"], "reaches 0.002 and never the lr 0.003"),
        (["training.optimizer.warmup=500", "training.steps=1000000", "training.ema.decay=0.9999"], None),
        (
            ["training.optimizer.warmup=9000", "training.optimizer.cooldown=2000", "training.steps=10000"],
            "reaches 0.00273",
        ),
        (["training.ema.decay=0.9"], "training.ema.decay 0.9 averages over 10 steps"),
        (["condition.cfg_dropout=0"], None),
        (
            ["condition.cfg_dropout=0", "streams.video.sampling.cfg_scale=3"],
            "streams.video.sampling.cfg_scale: 3 needs the",
        ),
        (
            ["condition.kind=none", "streams.video.sampling.cfg_scale=3"],
            "streams.video.sampling.cfg_scale: 3 changes n",
        ),
        (["condition.cfg_dropout=0.1", "streams.video.sampling.cfg_scale=3"], None),
    ],
)
def test_what_can_not_work_as_it_is_set_is_named(overrides, wanted):
    found = warnings(load_config(CONFIG, ["training.ema.decay=0.1", *overrides]))
    assert len(found) == (wanted is not None)
    assert wanted is None or wanted in found[0]


@pytest.mark.slow
def test_the_dry_run_and_the_start_of_training_say_the_same_and_a_resumed_run_says_nothing(tmp_path, capsys):
    settings = [
        "training.ema.decay=0.1",
        "training.optimizer.warmup=50",
        "condition.cfg_dropout=0",
        "streams.audio.sampling.cfg_scale=2",
    ]
    expected = [f"warning: {line}" for line in warnings(load_config(CONFIG, settings))]
    assert len(expected) == 2
    assert main(["train", str(CONFIG), "--dry-run", *settings]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == expected
    for steps in (6, 7):
        assert train(tmp_path / "run", *settings, f"training.steps={steps}") == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")] == expected
