"""What a run resumes with: the given configuration, what was changed since its start, and what is asked for now.

Without --change a run resumes bit for bit, so any other setting is refused. With it, the setting holds from the newest
checkpoint on, is noted in run.json, and stays: the plain command then means the changed settings too.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from configs.build import free_on_resume
from configs.load import load_config
from configs.schema import Config
from core.alignment.terms import AlignmentConfig
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.config import (
    ABSENT,
    COMPILE,
    changes_advice,
    differences,
    from_plain,
    of_other_kinds,
    read_plain,
    to_plain,
    validated,
    value_at,
    with_value,
)
from core.training.history import NO_CHANGE, Change, past, read_run, shown_value, stored_config, within
from core.training.settings import merge
from modalities.table import stream_defaults

SKIP = "training.skip_steps"

PART = r"streams\.\w+(\.parts\.\w+)?"
# Settings that the weights cannot follow, each with the reason.
UNFIT = {
    r"trunk\.(?!mmdit\.attention$)": "the weights were trained in this network and mean nothing in another",
    r"condition\.(kind|encoder_depth|text\.(vocabulary|ngrams|rows_per_word))$": (
        "the weights read this kind of condition and no other"
    ),
    r"condition\.encoder(?!\.(path|tokenizer|precision)$)": "the weights read the features of this text encoder",
    r"streams\.\w+$": "the order of its data goes on behind what its streams have consumed",
    r"streams\.\w+(\.parts\.\w+|\.parts|\.media)$": "the weights were trained on samples of other parts",
    r"streams\.\w+\.positions_per_second$": "the weights know their tokens by these positions",
    rf"{PART}\.media\.sizes$": "the order of its data goes on behind what every size has consumed",
    rf"{PART}\.std_floor$": "the statistics of the latents were measured with it, and stay",
    rf"{PART}\.media\.(statistics|normalize|keep|width|rate|rotation)$": "it is what the run's actions and states mean",
    rf"{PART}\.modality$": "the network has other layers for another modality",
    rf"{PART}\.media\.autoencoder$": "the weights were trained on the latents of this autoencoder",
    rf"{PART}\.media\.autoencoder\.kind": "the weights were trained on the latents of this autoencoder",
    rf"{PART}\.media\.(patch|patch_frames|first_frame_alone|hop|exponent|sample_rate|channels)$": (
        "it is what a token of the weights stands for"
    ),
    r"training\.posthoc_ema": "its averages reach back to the first step of the run",
}


@dataclass(frozen=True)
class Resolved:
    """A configuration to train with, what it changes in its run, lines that tell of it, and the run's checkpoints."""

    config: Config
    change: Change = NO_CHANGE
    notes: tuple[str, ...] = ()
    store: CheckpointStore | None = None


def resolve(path: Path, overrides: list[str], asked: list[str]) -> Resolved:
    """The configuration of a new run, or of one that is resumed with the changes noted in its folder and those of
    `asked` (`key=value`).

    Raises ConfigError for settings that differ from the run's and were not asked for, for changes that its weights
    cannot follow, and for changes without a run.
    """
    given = load_config(path, overrides)
    run = Path(given.run)
    if given.run:
        refuse_older(run)
    store = CheckpointStore(run / "checkpoints") if given.run else None
    step = None if store is None else store.latest()
    stored = stored_config(run) if step is not None else None
    if stored is None or step is None:
        if asked:
            raise ConfigError(
                f"--change: {given.run or 'the run'} has no checkpoint yet, so there is nothing to go on from; give "
                f"these as plain settings: {' '.join(asked)}"
            )
        return Resolved(given, store=store)
    known = read_run(run)
    plain, notes, added = _resumed(run, stored, to_plain(given), known.get("changes", []), free_on_resume(given))
    before_skipped = value_at(stored, SKIP)
    keys: set[str] = set(added)
    if asked:
        arguments = [*overrides, *known.get("arguments", [])]
        before = to_plain(load_config(path, arguments))
        wanted = differences(before, to_plain(load_config(path, [*arguments, *asked])))
        _refuse_unfit(run, wanted)
        for key, _, after in wanted:
            plain = with_value(plain, key, after)
        changed = {key for key, _, _ in wanted if value_at(stored, key) != value_at(plain, key)}
        notes += [f"from step {step} on: {key} {_text(stored, key)} -> {_text(plain, key)}" for key in sorted(changed)]
        keys |= changed
        if not changed:
            notes.append("--change: the run has these settings already")
    _refuse_done_steps(run, step, before_skipped, value_at(plain, SKIP))
    config = validated(Config, plain)
    other_data = {name for name in config.streams if _touches(keys, f"streams.{name}.data")}
    change = Change(step, frozenset(keys), tuple(asked) if keys - set(added) else (), frozenset(other_data))
    return Resolved(config, change, tuple(notes), store)


def refuse_older(run: Path) -> None:
    """Raise ConfigError for the folder of a run whose settings this version cannot read."""
    path = run / "config.yaml"
    if path.exists() and "modalities" in read_plain(path):
        raise ConfigError(
            f"{path}: the run is of an older version of this project, with `modalities` in place of `streams`, and "
            "cannot go on; start a new run in another folder"
        )


def _resumed(
    run: Path, stored: dict, given: dict, changes: list[dict], free: set[str]
) -> tuple[dict, list[str], list[str]]:
    """(the run's settings with the free ones of the command, lines about changes that stay, settings that the version
    which started the run did not have, at their defaults, or that it had and nothing read)."""
    plain, notes, refused, added = stored, [], [], []
    defaults, unread = _defaults(given), of_other_kinds(Config, stored)
    earlier = [entry.config for entry in past(stored, changes)]
    for key, now, wanted in differences(stored, given):
        entries = [entry for entry in changes if within(entry["key"], [key]) or within(key, [entry["key"]])]
        if key == SKIP:  # a step that was once left out stays left out
            plain = with_value(plain, key, sorted({*(now if now is not ABSENT else ()), *wanted}))
        elif entries and any(value_at(before, key) == wanted for before in earlier):
            notes.append(f"{key}: {shown_value(now)}, changed at step {entries[-1]['step']} from {shown_value(wanted)}")
        elif key == COMPILE and wanted == "auto" and now is not ABSENT:
            continue  # which means what the run does already
        elif within(key, free):
            plain = with_value(plain, key, wanted)
        elif wanted is ABSENT and key in unread:
            plain = with_value(plain, key, ABSENT)
            added.append(key)
        elif now is ABSENT and value_at(defaults, key) == wanted:  # what a default means is what was done before
            plain = with_value(plain, key, wanted)
            added.append(key)
        else:
            since = f"since step {entries[-1]['step']}" if entries else "when the run was started"
            refused.append((key, now, wanted, since))
    if refused:
        wanted = [(key, after) for key, _, after, _ in refused if _unfit(key) is None]
        raise ConfigError(
            [f"{key}: {now!r} {since}, {after!r} now" for key, now, after, since in refused]
            + ([changes_advice(wanted)] if wanted else [_new_run(run)])
        )
    return plain, notes, added


def _defaults(given: dict) -> dict:
    """The schema's own values for the streams of a run, of all sections that may be left out too."""
    streams = {name: _kinds(stream) for name, stream in given["streams"].items()}
    plain = merge(stream_defaults({"streams": streams}), {"streams": streams})
    sections = {entry.name: typing.get_type_hints(AlignmentConfig)[entry.name] for entry in fields(AlignmentConfig)}
    terms = {
        name: next(kind for kind in typing.get_args(hint) if kind is not type(None)) for name, hint in sections.items()
    }
    alignment = AlignmentConfig(**{name: kind() for name, kind in terms.items()})
    return to_plain(replace(from_plain(Config, plain), alignment=alignment))


def _kinds(stream: dict) -> dict:
    """What the schema of a stream depends on."""
    parts = {name: {"modality": part["modality"]} for name, part in stream.get("parts", {}).items()}
    return {"modality": stream.get("modality", ""), "parts": parts}


def _unfit(key: str) -> str | None:
    return next((reason for pattern, reason in UNFIT.items() if re.match(pattern, key)), None)


def _refuse_unfit(run: Path, wanted: list[tuple[str, Any, Any]]) -> None:
    found = [
        f"--change {key}: {_shown(now)} cannot become {_shown(after)}: {why}"
        for key, now, after in wanted
        if (why := _unfit(key))
    ]
    if found:
        raise ConfigError([*found, _new_run(run)])


def _shown(value: Any) -> str:
    return shown_value(value) if isinstance(value, dict) else repr(value)


def _new_run(run: Path) -> str:
    return f"A new run can start from these weights: selfflow train CONFIG run=NEW --init-from {run}"


def _refuse_done_steps(run: Path, step: int, before: Any, after: Any) -> None:
    """Only steps that are still to come can be left out."""
    done = sorted(number for number in {*after} - {*(before if before is not ABSENT else ())} if number <= step)
    if done:
        raise ConfigError(f"{SKIP}: step {done[0]} is done already; {run} goes on after step {step}")


def _touches(keys: set[str], section: str) -> bool:
    return any(within(key, [section]) or within(section, [key]) for key in keys)


def _text(config: dict, key: str) -> str:
    return shown_value(value_at(config, key))
