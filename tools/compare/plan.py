"""What a study compares: arms that share data, trunk, budget and seeds, and differ in a few settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError, SelfFlowError, nearest
from core.training.config import load
from modalities.evaluation.settings import MEASURES

BETTER = ("lower", "higher")
START = "start"  # folder of the run that the arms start from


@dataclass
class Study:
    """
    Attributes:
        title, about: what the report says first.
        config: the training configuration of all arms, relative to the study's file.
        start: another one, of a run that is made first and whose weights every arm starts from, as `selfflow finetune`
            has it; empty for none.
        elsewhere: name -> a configuration, whose held-out records the last step of every arm and the run of `start` are
            measured on too, by its own settings: what is forgotten. Their values are NAME/VALUE. Streams are those of
            the same name.
        settings: overrides of all arms.
        arms: name -> overrides of this arm; the first is what the others are compared with.
        against: arm -> the arm that it is compared with instead.
        seeds: every arm is trained once with each; arms of one seed share initial weights, data order and noise.
        evaluate_every: steps between evaluations of `along`; the last step gets every measure of the configuration.
        along: measures on the way.
        metrics: name of a value of `selfflow evaluate` -> lower or higher, which is better. The report shows these.
        labels: such a name -> what the report calls it.
    """

    title: str = ""
    about: str = ""
    config: str = ""
    start: str = ""
    elsewhere: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)
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
        for name in (*self.arms, *self.elsewhere):
            if not name.strip() or name.strip(".") == "" or re.search(r"[/\\,|:]", name):
                kind = "arms" if name in self.arms else "elsewhere"
                found.append(f"{kind}: {name!r} is the name of a folder and of --arms; without / \\ , | and :")
        if self.start and START in self.arms:
            found.append(f"arms: {START!r} is the folder of the run that the arms start from")
        for arm, other in self.against.items():
            for name in (arm, other):
                if name not in self.arms:
                    found.append(f"against: {name!r} is not one of the arms.{nearest(name, self.arms)}")
            if arm == other:
                found.append(f"against: {arm!r} is compared with itself")
        for override in [*self.settings, *(line for lines in self.arms.values() for line in lines)]:
            if override.partition("=")[0].strip() in ("run", "seed"):
                found.append(f"settings, arms: {override!r} is set by the study itself; its seeds are `seeds`")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            found.append(f"seeds: {self.seeds} must be one or more different numbers")
        if self.evaluate_every < 1:
            found.append(f"evaluate_every: {self.evaluate_every} must be at least 1")
        for name in self.along:
            if name not in MEASURES:
                found.append(f"along: {name!r} is not one of {', '.join(MEASURES)}.{nearest(name, MEASURES)}")
        for name, better in self.metrics.items():
            if better not in BETTER:
                found.append(f"metrics: {name}: {better!r} is not one of {', '.join(BETTER)}")
        if not self.metrics:
            found.append("metrics: empty; name at least one value of `selfflow evaluate`")
        for name in self.labels:
            if name not in self.metrics:
                found.append(f"labels: {name!r} is not one of the metrics.{nearest(name, self.metrics)}")
        return found

    def reference(self, arm: str) -> str | None:
        """The arm that it is compared with; None for one that is a reference itself."""
        first = next(iter(self.arms))
        return self.against.get(arm) or (None if arm == first or arm in self.against.values() else first)


@dataclass(frozen=True)
class Run:
    """One arm with one seed, or the run that all arms start from.

    Attributes:
        root: what data paths start from.
        start: the run whose weights this one starts from; None for none.
        elsewhere: name -> configuration, and what its data paths start from, see `Study`.
    """

    arm: str
    seed: int
    config: Config
    root: Path
    start: Path | None = None
    elsewhere: dict[str, tuple[Config, Path]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.run)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Raises ConfigError with all problems of the file."""
    return load(Study, path, list(overrides))


def plan(study: Study, path: Path, out: Path) -> list[Run]:
    """Every run, seed by seed, so that a study that is cut short has compared all arms on fewer seeds.

    Raises ConfigError, before anything is trained, for an arm whose settings are wrong.
    """
    config_path = (path.parent / study.config).resolve()
    start, elsewhere = out / START if study.start else None, other_configs(study, path)
    runs: list[Run] = []
    wrong: dict[str, SelfFlowError] = {}
    for seed in study.seeds:
        for arm, overrides in study.arms.items():
            if arm in wrong:
                continue
            try:
                config = load_config(config_path, [*study.settings, *overrides])
            except ConfigError as error:
                wrong[arm] = error
                continue
            config.run, config.seed = str(out / arm / f"seed-{seed}"), seed
            every = min(study.evaluate_every, config.training.steps)
            config.training.save_every = every
            config.training.keep = max(2, config.training.steps // every + 2)
            runs.append(Run(arm, seed, config, config_path.parent, start, elsewhere))
    if not wrong and len({run.config.training.steps for run in runs}) > 1:
        steps = {run.arm: run.config.training.steps for run in runs}
        raise ConfigError(f"training.steps: {steps} differ; all arms of a study have the same budget")
    refuse(wrong, study)
    return runs


def start_run(study: Study, path: Path, out: Path) -> Run | None:
    """The run that the arms start from; None where they start anew. Raises ConfigError as `load_config`."""
    if not study.start:
        return None
    config_path = (path.parent / study.start).resolve()
    config = load_config(config_path, [f"run={out / START}"])
    return Run(START, config.seed, config, config_path.parent, None, other_configs(study, path))


def other_configs(study: Study, path: Path) -> dict[str, tuple[Config, Path]]:
    """Of `elsewhere`. Raises ConfigError as `load_config`, and for streams that have no held-out records."""
    found = {}
    for name, other in study.elsewhere.items():
        place = (path.parent / other).resolve()
        found[name] = load_config(place, []), place.parent
        if not any(stream.val for stream in found[name][0].streams.values()):
            raise ConfigError(f"elsewhere: {name}: no stream of {place} has held-out records (streams.NAME.val)")
    return found


def refuse(wrong: Mapping[str, SelfFlowError], study: Study) -> None:
    """Raise one ConfigError for all arms that cannot be; what is wrong with every arm is reported once."""
    arms_of: dict[str, list[str]] = {}
    for arm, error in wrong.items():
        for line in getattr(error, "problems", [str(error)]):
            line = line.replace("command line '", "setting '", 1)  # of the study's file, not of the command
            arms_of.setdefault(line, []).append(arm)
    if arms_of:
        raise ConfigError(
            f"{'every arm' if len(arms) == len(study.arms) else f'arms.{arms[0]}' if len(arms) == 1 else arms}: {line}"
            for line, arms in arms_of.items()
        )


def evaluation_steps(config: Config) -> list[int]:
    """Steps whose checkpoints are evaluated: every `save_every`, and the last."""
    every, last = config.training.save_every, config.training.steps
    return sorted({*range(every, last + 1, every), last})
