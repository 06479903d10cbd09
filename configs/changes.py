"""What a run goes on with: the configuration that is given, what was changed since its start, and what is asked now.

Without --change a run resumes bit for bit, so any other setting is refused. With it, the setting holds from the newest
checkpoint on, is noted in run.json, and stays: the plain command then means the changed settings too.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from configs.build import free_on_resume
from configs.load import load_config
from configs.schema import AudioStream, Config, ImageStream, ModalitiesConfig, VideoStream
from core.alignment.terms import AlignmentConfig
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.config import ABSENT, changes_advice, differences, to_plain, validated
from core.training.history import (
    NO_CHANGE,
    Change,
    past,
    read_run,
    shown_value,
    stored_config,
    value_at,
    with_value,
    within,
)

SKIP = "training.skip_steps"

# Settings that the weights cannot follow, each with the reason.
UNFIT = {
    r"trunk\.(?!mmdit\.attention$)": "the weights were trained in this network and mean nothing in another",
    r"condition\.(kind|encoder_depth|text\.(vocabulary|ngrams|rows_per_word))$": (
        "the weights read this kind of condition and no other"
    ),
    r"condition\.encoder(?!\.(path|tokenizer|precision)$)": "the weights read the features of this text encoder",
    r"modalities\.(image|video|audio)$": "the network has layers for these modalities only",
    r"modalities\.\w+\.media\.autoencoder$": "the weights were trained on the latents of this autoencoder",
    r"modalities\.\w+\.media\.autoencoder\.kind": "the weights were trained on the latents of this autoencoder",
    r"modalities\.\w+\.media\.(patch|patch_frames|first_frame_alone|hop|exponent|sample_rate|channels)$": (
        "it is what a token of the weights stands for"
    ),
}


@dataclass(frozen=True)
class Resolved:
    """A configuration to train with, what it changes in its run, and lines that tell of it."""

    config: Config
    change: Change = NO_CHANGE
    notes: tuple[str, ...] = ()


def resolve(path: Path, overrides: list[str], asked: list[str]) -> Resolved:
    """The configuration of a new run, or of one that is resumed with the changes noted in its folder and those of
    `asked` (`key=value`).

    Raises ConfigError for settings that differ from the run's and were not asked for, for changes that its weights
    cannot follow, and for changes without a run.
    """
    given = load_config(path, overrides)
    run = Path(given.run)
    step = CheckpointStore(run / "checkpoints").latest() if given.run else None
    stored = stored_config(run) if step is not None else None
    if stored is None:
        if asked:
            raise ConfigError(
                f"--change: {given.run or 'the run'} has no checkpoint yet, so there is nothing to go on from; give "
                f"these as plain settings: {' '.join(asked)}"
            )
        return Resolved(given)
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
    other_data = {name for name in config.modalities.streams() if _touches(keys, f"modalities.{name}.data")}
    change = Change(step, frozenset(keys), tuple(asked) if keys - set(added) else (), frozenset(other_data))
    return Resolved(config, change, tuple(notes))


def _resumed(
    run: Path, stored: dict, given: dict, changes: list[dict], free: set[str]
) -> tuple[dict, list[str], list[str]]:
    """(the run's settings with the free ones of the command, lines about changes that stay, settings that the version
    which started the run did not have, at their defaults)."""
    plain, notes, refused, added = stored, [], [], []
    defaults = _defaults()
    earlier = [entry.config for entry in past(stored, changes)]
    for key, now, wanted in differences(stored, given):
        entries = [entry for entry in changes if within(entry["key"], [key]) or within(key, [entry["key"]])]
        if key == SKIP:  # a step that was once left out stays left out
            plain = with_value(plain, key, sorted({*(now if now is not ABSENT else ()), *wanted}))
        elif entries and any(value_at(before, key) == wanted for before in earlier):
            notes.append(f"{key}: {shown_value(now)}, changed at step {entries[-1]['step']} from {shown_value(wanted)}")
        elif within(key, free):
            plain = with_value(plain, key, wanted)
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


def _defaults() -> dict:
    """The schema's own values, of all sections that may be left out too."""
    streams = ModalitiesConfig(ImageStream(), VideoStream(), AudioStream())
    sections = {entry.name: typing.get_type_hints(AlignmentConfig)[entry.name] for entry in fields(AlignmentConfig)}
    terms = {
        name: next(kind for kind in typing.get_args(hint) if kind is not type(None)) for name, hint in sections.items()
    }
    return to_plain(
        Config(modalities=streams, alignment=AlignmentConfig(**{name: kind() for name, kind in terms.items()}))
    )


def _unfit(key: str) -> str | None:
    return next((reason for pattern, reason in UNFIT.items() if re.match(pattern, key)), None)


def _refuse_unfit(run: Path, wanted: list[tuple[str, Any, Any]]) -> None:
    found = [
        f"--change {key}: {now!r} cannot become {after!r}: {why}" for key, now, after in wanted if (why := _unfit(key))
    ]
    if found:
        raise ConfigError([*found, _new_run(run)])


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
