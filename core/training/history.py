"""What was changed in a run, and when: the list `changes` of run.json.

An entry is {step, key, old, new, time, command}: after `step` finished steps the setting `key` went from `old` to `new`
(one that was not there has no `old`; one that went away, no `new`). With config.yaml, which holds the settings of now,
the entries tell the settings of every step. `arguments` is what was asked for with --change, in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.training.config import ABSENT, differences, in_words_of_now, read_plain, with_value


def read_run(path: Path) -> dict[str, Any]:
    """Content of run.json in a run's folder; {} where there is none."""
    file = path / "run.json"
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON ({error}); remove it to resume without its history") from error


def stored_config(path: Path) -> dict[str, Any] | None:
    """The plain settings that a run resumes with; None before its first start.

    run.json is written before config.yaml, so after a kill between the two the changes are made once more here.
    """
    if not (path / "config.yaml").exists():
        return None
    plain = read_plain(path / "config.yaml")
    for entry in read_run(path).get("changes", []):
        plain = with_value(plain, entry["key"], entry.get("new", ABSENT))
    return in_words_of_now(plain)


@dataclass(frozen=True)
class Change:
    """What one start of a program changes in the run that it resumes.

    Attributes:
        step: finished steps that the run resumes from; None for those of its newest checkpoint.
        keys: settings that may differ from those of the run; they are noted in run.json.
        arguments: as they were asked for, `key=value`; noted too, since they belong to the run's settings from now on.
        other_data: names of data sets whose records may differ.
    """

    step: int | None = None
    keys: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()
    other_data: frozenset[str] = frozenset()


NO_CHANGE = Change()


def entries_for(
    old: dict[str, Any], new: dict[str, Any], change: Change, step: int, time: str, command: list[str]
) -> list[dict[str, Any]]:
    """The entries of a start that resumes `old` with `new` after `step` finished steps."""
    found = []
    for key, before, after in differences(old, new):
        if within(key, change.keys):
            values = {name: value for name, value in (("old", before), ("new", after)) if value is not ABSENT}
            found.append({"step": step, "key": key, **values, "time": time, "command": command})
    return found


def within(key: str, names: Iterable[str]) -> bool:
    """Whether the key is one of the settings, or lies in one of the sections."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def clamped(entries: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The entries for a run that resumes after `step` steps. Where newer checkpoints are lost, the settings of now hold
    from here on, and not from where they were changed."""
    return [entry | {"step": min(entry["step"], step)} for entry in entries]


@dataclass(frozen=True)
class Past:
    """Plain settings that a run had until `until` steps were finished."""

    until: int
    config: dict[str, Any]


def past(config: dict[str, Any], entries: list[dict[str, Any]]) -> list[Past]:
    """All earlier settings of a run, oldest first, derived from the current ones."""
    found: list[Past] = []
    for entry in reversed(entries):
        config = with_value(config, entry["key"], entry.get("old", ABSENT))
        if found and found[-1].until == entry["step"]:
            found[-1] = Past(entry["step"], config)
        else:
            found.append(Past(entry["step"], config))
    return found[::-1]


def shown_value(value: Any) -> str:
    """A setting in one short line."""
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
