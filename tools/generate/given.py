"""Files on the command line that parts are given by, and lines about settings under the names of options."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from core.errors import ConfigError
from core.keys import generator
from modalities.base import Known, Record
from modalities.streams import Parts
from modalities.table import MODALITIES


def known_files() -> dict[str, list[str]]:
    """Name of a file that can be given -> the modalities that know it."""
    found: dict[str, list[str]] = {}
    for name, row in MODALITIES.items():
        for file in getattr(row.adapter, "known_files", ()):
            found.setdefault(file, []).append(name)
    return found


def given_files(options: argparse.Namespace) -> dict[str, str]:
    """Name of an option -> FILE, or PART=FILE, of those on the command line."""
    values = {name: getattr(options, f"file_{name}", None) for name in known_files()}
    return {name: value for name, value in values.items() if value is not None}


def known_parts(options: argparse.Namespace, parts: Parts) -> dict[str, Known]:
    """What is to be kept of each part, from the files on the command line. Raises ConfigError for wrong ones."""
    taken: dict[str, dict[str, Record]] = {}
    for file, value in given_files(options).items():
        part, path = part_of_file(file, value, options.stream, parts)
        taken.setdefault(part, {})[file] = file_record(path)
    known = {
        name: parts[name].adapter.known_from(files, partial(generator, options.seed, "known"))
        for name, files in taken.items()
    }
    if known and all(name in known and bool(known[name].conditioning_mask.all()) for name in parts):
        raise ConfigError(f"{', '.join(given_options(options))}: give all of a sample, so that nothing is left to make")
    return known


def part_of_file(file: str, value: str, stream: str, parts: Parts) -> tuple[str, Path]:
    """Which part a file is for; PART=FILE says so where several could take it."""
    fitting = [name for name, part in parts.items() if file in part.adapter.known_files]
    name, equals, rest = value.partition("=")
    if equals and name in fitting:
        return name, Path(rest)
    option = as_option(file)
    if not fitting:
        wanted, has = " or ".join(known_files()[file]), ", ".join(part.adapter.modality for part in parts.values())
        raise ConfigError(f"{option}: goes with streams that have {wanted}; {stream} has {has}")
    if len(fitting) > 1:
        choices = " or ".join(f"{option} {name}=FILE" for name in fitting)
        raise ConfigError(f"{option}: {stream} has several parts that it can be for; write {choices}")
    return fitting[0], Path(value)


def given_options(options: argparse.Namespace) -> list[str]:
    return [as_option(name) for name in given_files(options)]


def as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def file_record(path: Path) -> Record:
    return Record(key=str(path), origin=str(path), media=path, suffix=path.suffix.lower())


def as_option_line(problem: str) -> str:
    """A line of `problems` under the names of the command line."""
    if problem.startswith("parts: "):
        return problem.replace("parts", "--part", 1)
    if problem.startswith("parts."):
        return problem.replace("parts.", "--part ", 1)
    names, rest = problem.split(":", 1)
    return f"{', '.join(f'--{name}' for name in names.split(', ')).replace('_', '-')}:{rest}"
