"""Errors meant for people: what is wrong, the value seen, what is allowed, the nearest valid name."""

from __future__ import annotations

import difflib
import math
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

Entry = TypeVar("Entry")


class SelfFlowError(Exception):
    """Base of every error that the command line prints without a traceback.

    `exit_code` is what the command then ends with; docs/operations.md lists them.
    """

    exit_code = 2


class ConfigError(SelfFlowError):
    """One or more settings are wrong. `problems` holds one line for each."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ShapeError(SelfFlowError):
    """A tensor has another shape, dtype or range than its field promises."""


class DataError(SelfFlowError):
    """A record or a data source cannot be used; the message names file, key and reason."""


class CheckpointError(SelfFlowError):
    """A checkpoint or a foreign weight file is missing, damaged or does not fit."""


class AccidentError(SelfFlowError):
    """The machine failed, and no setting is wrong: a full disk, a killed worker. The same command resumes later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class NotWrittenError(CheckpointError):
    """A checkpoint could not be written."""

    exit_code = AccidentError.exit_code


class BadStepError(SelfFlowError):
    """A step that must not be taken ends the run; no weights were touched.

    `bad_step` is the number that the step has in metrics.jsonl, or None where it is not one step of a training.
    """

    def __init__(self, message: str, bad_step: int | None = None):
        self.bad_step = bad_step
        super().__init__(message)


class OtherProcessError(SelfFlowError):
    """Another process of the run failed, by an error that is no message for people; its traceback is above."""

    exit_code = 1


class NotFiniteError(BadStepError):
    """A loss, a gradient norm or a sample is NaN or infinite."""


class SpikeError(BadStepError):
    """The loss or the gradient norm has stood out too often."""


def described(error: BaseException) -> str:
    """One line about any exception: ours as they are, others by type, first line, and the place that raised them."""
    if isinstance(error, SelfFlowError):
        return " ".join(str(error).split("\n"))
    text = next(iter(str(error).strip().splitlines()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' Did you mean: x?' for the closest allowed name, or '' when nothing is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean: {match[0]!r}?" if match else ""


def choose(what: str, name: object, table: Mapping[str, Entry]) -> Entry:
    """`table[name]`, or a ConfigError that lists the allowed names."""
    if not isinstance(name, str) or name not in table:
        allowed = ", ".join(table)
        raise ConfigError(f"{what}: {name!r} is not one of {allowed}.{nearest(str(name), table)}")
    return table[name]


def not_finite(settings: Any) -> list[str]:
    """One line for every field of a dataclass that is NaN or infinite; of its own fields, not of sections in them."""
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return [
        f"{name}: {value} is not a finite number"
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough to be quoted in a message; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
