"""Tables of a report: settings and where runs differ, what a run was made with, and the commands that repeat it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.training.history import shown_value
from tools.report.folders import QUARANTINE, RunLook, flat

ABSENT = "–"

Row = tuple[str, list[str]]  # setting, its value in every run


@dataclass(frozen=True)
class Quarantined:
    """The first `rows` of `number` bad records: stream, key, reason, replaced by. How many each stream has."""

    number: int
    rows: list[tuple[str, str, str, str]]
    by_stream: dict[str, int]


def settings(runs: Sequence[RunLook]) -> tuple[list[Row], list[Row]]:
    """(setting, value of every run): those that differ, without the run's own folder, and all of them.

    Of what differs, a section that some runs lack is one row.
    """
    held = [flat(run.config) for run in runs]
    names = list(dict.fromkeys(name for each in held for name in each))
    rows = [(name, [each.get(name, ABSENT) for each in held]) for name in names]
    return by_section([(name, values) for name, values in rows if len(set(values)) > 1 and name != "run"], held), rows


def by_section(rows: Sequence[Row], held: Sequence[Mapping[str, str]]) -> list[Row]:
    """Rows of settings that some runs lack as one row for each section, with the number of its settings; those in which
    the other runs differ stand for themselves."""
    found: dict[str, list[Row]] = {}
    for name, values in rows:
        lacking = [each for each, value in zip(held, values, strict=True) if value == ABSENT]
        alone = not lacking or len(set(values) - {ABSENT}) > 1
        found.setdefault(name if alone else _lacked(name, lacking), []).append((name, values))
    return [inside[0] if len(inside) == 1 else _counted(section, inside) for section, inside in found.items()]


def _lacked(name: str, runs: Sequence[Mapping[str, str]]) -> str:
    """The outermost section around a setting that none of the runs has anything of; the setting, if there is none."""
    steps = name.split(".")
    for length in range(1, len(steps)):
        section = ".".join(steps[:length])
        if not any(other == section or other.startswith(f"{section}.") for run in runs for other in run):
            return section
    return name


def _counted(section: str, inside: Sequence[Row]) -> Row:
    counts = [sum(value != ABSENT for value in values) for values in zip(*(row[1] for row in inside), strict=True)]
    return section, [f"{count} settings" if count else ABSENT for count in counts]


def overview(run: RunLook) -> list[tuple[str, str]]:
    """What a person asks first."""
    wanted = run.config.get("training", {}).get("steps")
    steps = f"{run.metrics.last:,}" + (f" of {wanted:,}" if isinstance(wanted, int) else "")
    end = run.about.get("end") or {}
    state = str(run.about.get("state") or "training, or killed")
    if reason := end.get("reason"):
        state += f": {reason}"
    rows = [
        ("method", f"{run.config.get('method', ABSENT)}, seed {run.config.get('seed', ABSENT)}"),
        ("steps", steps),
        ("state", state),
        ("streams", ", ".join(map(str, run.config.get("streams", {}) or {})) or ABSENT),
        ("checkpoints", ", ".join(map(str, run.checkpoints)) or "none"),
    ]
    if losses := last_losses(run):
        rows.append(("last losses", losses))
    if begun := run.about.get("init"):
        rows.append(("started from", str(begun.get("source", begun))))
    return rows


def last_losses(run: RunLook) -> str:
    """Of every stream, the mean over its last 50 steps."""
    found = []
    for name, curve in run.metrics.curves.items():
        if name.rpartition("/")[2] == "loss":
            values = curve.values[-50:]
            found.append(f"{name.removesuffix('/loss')} {sum(values) / len(values):.4g}")
    return ", ".join(found)


def data(run: RunLook) -> list[tuple[str, str, str, list[str]]]:
    """(stream, records, fingerprint, notes on what was left out)."""
    prints = run.about.get("data") or {}
    rows = []
    for name in dict.fromkeys([*prints, *run.data]):
        noted = run.data.get(name, {})
        records = noted.get("records")
        notes = [str(line) for line in noted.get("notes", [])]
        rows.append((name, f"{records:,}" if isinstance(records, int) else "", str(prints.get(name, "")), notes))
    return rows


def quarantined(run: RunLook) -> Quarantined:
    rows = [
        (
            str(entry.get("stream", "")),
            str(entry.get("origin", "") or entry.get("key", "")),
            str(entry.get("reason", "")),
            str(entry.get("replaced_by", "")),
        )
        for entry in run.quarantine
    ]
    return Quarantined(len(rows), rows[:QUARANTINE], dict(Counter(row[0] for row in rows)))


def starts(run: RunLook) -> list[tuple[str, str, str, str]]:
    """(time, machine, versions, commit) of every start."""
    found = []
    for start in run.about.get("starts") or []:
        versions = ", ".join(f"{name} {version}" for name, version in (start.get("versions") or {}).items())
        commit = str(start.get("commit") or "") + (
            " with changes that were not committed" if start.get("dirty") else ""
        )
        found.append((str(start.get("time", "")), str(start.get("machine", "")), versions, commit))
    return found


def changes(run: RunLook) -> list[tuple[str, str, str, str]]:
    """(after step, setting, old, new)."""
    return [
        (
            str(entry.get("step", "")),
            str(entry.get("key", "")),
            shown_value(entry.get("old", "not there")),
            shown_value(entry.get("new", "not there")),
        )
        for entry in run.about.get("changes") or []
    ]


def commands(run: RunLook) -> list[tuple[str, str]]:
    """(what for, lines to type). The first start says how the run began; its settings of now are in config.yaml."""
    folder, first = run.path, next(iter(run.about.get("starts") or []), {})
    begun = (run.about.get("init") or {}).get("source")
    origin = ["--init-from", str(begun)] if begun else []
    again = shlex.join(["selfflow", "train", str(folder / "config.yaml"), f"run={beside(folder)}", *origin])
    commit = str(first.get("commit") or "")
    lines = [f"git checkout {shlex.quote(commit)}", again] if commit else [again]
    found = [("to reproduce it in another folder", "\n".join(lines))]
    found.append(("to go on with it", shlex.join(["selfflow", "train", str(folder / "config.yaml")])))
    if run.checkpoints:
        for stream in run.config.get("streams") or {}:
            generate = shlex.join(["selfflow", "generate", str(stream), "--run", str(folder)])
            found.append((f"to generate {stream}", f"{generate} --prompt '...'"))
    if typed := typed_command(first.get("command")):
        found.append(("as it was started", typed))
    return found


def beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-again")


def typed_command(arguments: Any) -> str:
    """The command of a start as it was typed; the program's path is that of its machine and is left out."""
    if not isinstance(arguments, list) or not arguments:
        return ""
    program, *rest = map(str, arguments)
    name = "selfflow" if Path(program).name in ("selfflow", "cli.py") else program
    return shlex.join([name, *rest])
