"""An unknown key is looked for in the whole tree of settings, and among the names of other projects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.training.config import load


@dataclass
class Optimizer:
    lr: float = 1.0
    decay: float = 0.0


@dataclass
class Training:
    steps: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass
class Sampling:
    steps: int = 1
    cfg_scale: float = 1.0


@dataclass
class Part:
    path: str = ""
    parts: dict[str, Part] = field(default_factory=dict)


@dataclass
class Kind:
    batch: int = 1
    data: Part = field(default_factory=Part)
    other: Part | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass
class Kinds:
    one: Kind | None = None
    two: Kind | None = None


@dataclass
class Whole:
    seed: int = 0
    training: Training = field(default_factory=Training)
    kinds: Kinds = field(default_factory=Kinds)


ALIASES = {"learning_rate": ("training.optimizer.lr",), "cfg": ("kinds.*.sampling.cfg_scale",)}


def hint(tmp_path: Path, override: str, text: str = "kinds: {one: {batch: 2}}\n") -> str:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Whole, tmp_path / "run.yaml", [override] if override else [], aliases=ALIASES)
    (line,) = caught.value.problems
    return line.partition("unknown key; allowed: ")[2].partition(". ")[2]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("steps=4", "Did you mean: 'training.steps'? Also: 'kinds.one.sampling.steps'."),
        ("kinds.one.steps=4", "Did you mean: 'kinds.one.sampling.steps'?"),
        ("sampling.steps=4", "Did you mean: 'kinds.one.sampling.steps'?"),
        ("optim.lr=1", "Did you mean: 'training.optimizer.lr'?"),
        ("training.lr=1", "Did you mean: 'training.optimizer.lr'?"),
        ("training.optim.lr=1", "Did you mean: 'training.optimizer.lr'?"),
        ("learning_rate=1", "Did you mean: 'training.optimizer.lr'?"),
        ("Learning-Rate=1", "Did you mean: 'training.optimizer.lr'?"),
        ("learnng_rate=1", "Did you mean: 'training.optimizer.lr'?"),
        ("trainer.learning_rate=1", "Did you mean: 'training.optimizer.lr'?"),
        ("cfg=3", "Did you mean: 'kinds.one.sampling.cfg_scale'?"),
        ("cfg_scal=3", "Did you mean: 'kinds.one.sampling.cfg_scale'?"),
        ("path=x", "Did you mean: 'kinds.one.data.path'?"),
        ("one.batch=x", "Did you mean: 'kinds.one.batch'?"),
        ("traning.steps=3", "Did you mean: 'training'?"),
        ("training.stpes=3", "Did you mean: 'steps'?"),
        ("zzz=3", ""),
    ],
)
def test_the_place_of_an_unknown_key_is_found(tmp_path, override, wanted):
    assert hint(tmp_path, override) == wanted


def test_sections_that_the_run_has_are_preferred_and_others_named_where_there_are_no_others(tmp_path):
    both = "kinds: {one: {batch: 2}, two: {batch: 3}}\n"
    assert hint(tmp_path, "batch=8", both) == "Did you mean: 'kinds.one.batch'? Also: 'kinds.two.batch'."
    assert hint(tmp_path, "batch=8", "kinds: {two: {batch: 3}}\n") == "Did you mean: 'kinds.two.batch'?"
    assert "'kinds.one.batch'" in hint(tmp_path, "batch=8", "seed: 1\n")


def test_a_key_in_a_file_is_told_with_its_line(tmp_path):
    text = "seed: 1\noptim:\n  lr: 3\n"
    assert hint(tmp_path, "", text) == "Did you mean: 'training.optimizer.lr'?"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"^run\.yaml:2: optim: unknown key"):
        load(Whole, tmp_path / "run.yaml")
