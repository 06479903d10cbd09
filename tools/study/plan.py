"""What a study compares: arms that share data, trunk, budget and seeds, and differ in a few settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from core.training.config import load
from modalities.evaluation.settings import MEASURES

BETTER = ("lower", "higher")


@dataclass
class Study:
    """
    Attributes:
        title, about: what the report says first.
        config: the training configuration of all arms, relative to the study's file.
        settings: overrides of all arms.
        arms: name -> overrides of this arm; the first is what the others are compared with.
        seeds: every arm is trained once with each; arms of one seed share initial weights, data order and noise.
        evaluate_every: steps between evaluations of `along`; the last step gets every measure of the configuration.
        along: measures on the way.
        metrics: name of a value of `selfflow evaluate` -> lower or higher, which is better. The report shows these.
        labels: such a name -> what the report calls it.
    """

    title: str = ""
    about: str = ""
    config: str = ""
    settings: list[str] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate_every: int = 500
    along: list[str] = field(default_factory=lambda: ["velocity"])
    metrics: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        found = []
        if not self.config:
            found.append("config: names the training configuration of all arms")
        if len(self.arms) < 2:
            found.append(f"arms: {len(self.arms)}; a comparison needs two or more")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            found.append(f"seeds: {self.seeds} must be one or more different numbers")
        if self.evaluate_every < 1:
            found.append(f"evaluate_every: {self.evaluate_every} must be at least 1")
        found += [f"along: {name!r} is not one of {', '.join(MEASURES)}" for name in self.along if name not in MEASURES]
        for name, better in self.metrics.items():
            if better not in BETTER:
                found.append(f"metrics.{name}: {better!r} is not one of {', '.join(BETTER)}")
        if not self.metrics:
            found.append("metrics: empty; name at least one value of `selfflow evaluate`")
        return found


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Config
    root: Path  # what data paths start from

    @property
    def folder(self) -> Path:
        return Path(self.config.run)


def load_study(path: Path, overrides: list[str]) -> Study:
    """Raises ConfigError with all problems of the file."""
    return load(Study, path, overrides)


def plan(study: Study, path: Path, out: Path) -> list[Run]:
    """Every run, seed by seed, so that a study that is cut short has compared all arms on fewer seeds.

    Raises ConfigError, before anything is trained, for an arm whose settings are wrong.
    """
    config_path = (path.parent / study.config).resolve()
    runs, wrong = [], []
    for seed in study.seeds:
        for arm, overrides in study.arms.items():
            folder = out / arm / f"seed-{seed}"
            own = [f"run={folder}", f"seed={seed}", *study.settings, *overrides]
            try:
                config = load_config(config_path, own)
            except ConfigError as error:
                wrong += [f"arms.{arm}: {line}" for line in error.problems if f"arms.{arm}: {line}" not in wrong]
                continue
            every = min(study.evaluate_every, config.training.steps)
            config.training.save_every = every
            config.training.keep = max(2, config.training.steps // every + 2)
            runs.append(Run(arm, seed, config, config_path.parent))
    if wrong:
        raise ConfigError(wrong)
    return runs


def evaluation_steps(config: Config) -> list[int]:
    """Steps whose checkpoints are evaluated: every `save_every`, and the last."""
    every, last = config.training.save_every, config.training.steps
    return sorted({*range(every, last + 1, every), last})
