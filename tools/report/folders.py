"""What the folders hold that a report is asked for: runs, rollouts and studies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.config import read_plain
from core.training.history import read_run, shown_value
from core.training.records import read_lines
from tools.report.curves import Lines, read_metrics, read_timings, read_validation

QUARANTINE = 100  # bad records shown; the others are counted


@dataclass(frozen=True)
class RunLook:
    """One run.

    Attributes:
        name: short, different for all runs of a page.
        config: plain settings, as stored; of any version.
        about: run.json, {} where there is none.
        data: data.json.
        quarantine: records that could not be used.
    """

    path: Path
    name: str
    config: dict[str, Any]
    about: dict[str, Any]
    data: dict[str, Any]
    metrics: Lines
    validation: Lines
    timings: Lines
    quarantine: list[dict[str, Any]]
    checkpoints: list[int]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Looks:
    runs: list[RunLook]
    rollouts: list[tuple[Path, dict[str, Any]]]
    studies: list[tuple[Path, dict[str, Any]]]


def look(paths: Sequence[Path]) -> Looks:
    """Raises ConfigError for folders that are none of the three, all of them named, and for files that are damaged."""
    wrong = [_problem(path) for path in paths]
    if any(wrong):
        raise ConfigError([line for line in wrong if line])
    known = {path.resolve(): path for path in paths}  # one that is named twice is shown once
    runs = [path for path in known.values() if (path / "config.yaml").is_file()]
    others = [path for path in known.values() if path not in runs]
    return Looks(
        [look_at_run(path, name) for path, name in zip(runs, short_names(runs), strict=True)],
        [(path, _object(path / "eval_info.json")) for path in others if (path / "eval_info.json").is_file()],
        [(path, _object(path / "results.json")) for path in others if (path / "results.json").is_file()],
    )


def _problem(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: there is no such folder; give a run, a folder of rollouts or of a study"
    if any((path / name).is_file() for name in ("config.yaml", "eval_info.json", "results.json")):
        return ""
    inside = sorted(each.parent.name for each in path.glob("*/config.yaml"))
    hint = f". There are runs in it: {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}" if inside else ""
    return f"{path} is no run (config.yaml), no rollouts (eval_info.json) and no study (results.json){hint}"


def short_names(paths: Sequence[Path]) -> list[str]:
    """As few last parts of each path as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max((len(each) for each in parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [str(path) for path in paths]


def look_at_run(path: Path, name: str) -> RunLook:
    """Raises ConfigError for a config.yaml or run.json that cannot be read."""
    config, about = read_plain(path / "config.yaml"), read_run(path)
    if not isinstance(about, dict):
        raise ConfigError(f"{path / 'run.json'}: must hold an object")
    metrics, timings = read_metrics(path / "metrics.jsonl"), read_timings(path / "timings.jsonl")
    validation = read_validation(path / "validation.jsonl")
    notes = []
    for file, lines in (("metrics", metrics), ("timings", timings), ("validation", validation)):
        if lines.broken:
            notes.append(f"{file}.jsonl: {lines.broken} damaged line{'s' * (lines.broken > 1)} left out")
        notes += [f"{each}: {count} values are NaN or infinite, gaps here" for each, count in lines.not_finite.items()]
    if metrics.skipped:
        steps = ", ".join(f"{step} ({stream})" for step, stream in metrics.skipped[:10])
        notes.append(f"{len(metrics.skipped)} steps left out: {steps}{', ...' * (len(metrics.skipped) > 10)}")
    if not metrics.curves:
        notes.append("no step is recorded yet")
    return RunLook(
        path,
        name,
        config,
        about,
        _data(path / "data.json"),
        metrics,
        validation,
        timings,
        read_lines(path / "quarantine.jsonl"),
        CheckpointStore(path / "checkpoints").steps() if (path / "checkpoints").is_dir() else [],
        notes,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object")
    return found


def _data(path: Path) -> dict[str, Any]:
    """Notes about the data, which a report does not depend on."""
    try:
        found = _object(path)
    except (OSError, ConfigError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted setting -> value as text, in the order of the file."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = shown_value(value)
    return found
