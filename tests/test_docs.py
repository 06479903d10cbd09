"""Every command in the pages, in the comments of configurations and in --help: its options exist, it is complete, and
the configuration that it names takes the settings that it gives."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from configs.load import load_config
from core.errors import SelfFlowError
from tests.shown_commands import ROOT, Shown, epilogs, pages, shown
from tools.cli import build_parser
from tools.compare.plan import load_study

PAGES = {str(path.relative_to(ROOT)): path for path in pages()}
OVERRIDE = re.compile(r"[\w.]+=")
LOADED_ELSEWHERE = "configs/README.md"  # its 40 configurations, by tests/configs/test_paper_configs.py
FROM_THE_SHELL = ("$@", "$OVERRIDES")  # in scripts


@cache
def parser() -> argparse.ArgumentParser:
    return build_parser()


@cache
def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (entry for entry in parser()._actions if isinstance(entry, argparse._SubParsersAction))
    return action.choices


def problem(command: Shown) -> str | None:
    """What is wrong with a command; None if nothing is."""
    words = [word for word in command.words if word not in FROM_THE_SHELL]
    if "--help" in words:
        return None if words[0] in subparsers() else "no such command"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, rest = parser().parse_known_args(words)
    except SystemExit:
        known = subparsers()[words[0]]._option_string_actions
        unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
        if command.inline and not unknown and re.search("required|expected", said.getvalue()):  # left out
            return None
        return said.getvalue().splitlines()[-1]
    if unknown := [word for word in rest if not OVERRIDE.match(word)]:
        return f"unknown arguments {' '.join(unknown)}"
    return None if command.where == LOADED_ELSEWHERE else misfit(options, rest)


def misfit(options: argparse.Namespace, rest: list[str]) -> str | None:
    """What the configuration that is named, if it is one of the project's, does not take."""
    for path in getattr(options, "studies", []):
        if (ROOT / path).is_file() and (found := wrong_study(path, tuple(options.set))):
            return found
    path = getattr(options, "config", None)
    if path is None or not (ROOT / path).is_file():
        return None
    given = [*getattr(options, "overrides", []), *rest]
    return wrong_settings(path, tuple(setting for setting in given if not re.match(r"run=\S", setting)))


@cache
def wrong_settings(config: Path, overrides: tuple[str, ...]) -> str | None:
    try:
        load_config(ROOT / config, list(overrides))
    except SelfFlowError as error:
        return str(error)
    return None


@cache
def wrong_study(study: Path, overrides: tuple[str, ...]) -> str | None:
    try:
        load_study(ROOT / study, overrides)
    except SelfFlowError as error:
        return str(error)
    return None


def problems(where: str, text: str) -> list[str]:
    found = [(command, problem(command)) for command in shown(where, text)]
    return [f"selfflow {' '.join(command.words)}: {wrong}" for command, wrong in found if wrong]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages(page):
    assert problems(page, PAGES[page].read_text()) == []


@pytest.mark.parametrize(("name", "text"), list(epilogs()), ids=[name for name, _ in epilogs()])
def test_commands_of_the_help(name, text):
    assert problems(name, text) == []


def test_most_pages_have_commands():
    counts = {page: len(list(shown(page, path.read_text()))) for page, path in PAGES.items()}
    assert counts["README.md"] > 20
    assert counts["docs/robots.md"] > 10
    assert sum(counts.values()) + sum(len(list(shown(*entry))) for entry in epilogs()) > 280


PAGE = """
Type `selfflow train a.yaml
run=x` or only think of `selfflow compare`, or `selfflow report RUN [RUN ...]`, of `selfflow train --dry-run`.

    .venv/bin/selfflow generate image --run r --prompt "a b" --number 8   # a remark
    torchrun --nproc-per-node 8 -m tools.cli train b.yaml 'streams={a: null,
      b: null}' \\
        seed=1 > log &
    selfflow evaluate --run r         what it does
"""


def test_what_counts_as_a_command():
    assert [(command.words, command.inline) for command in shown("page", PAGE)] == [
        (["train", "a.yaml", "run=x"], True),
        (["train", "--dry-run"], True),
        (["generate", "image", "--run", "r", "--prompt", "a b", "--number", "8"], False),
        (["train", "b.yaml", "streams={a: null, b: null}", "seed=1"], False),
        (["evaluate", "--run", "r"], False),
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("    selfflow generate image --run r --promt x", "unknown arguments --promt x"),
        ("    selfflow train --dry-run", "the following arguments are required: config"),
        ("See `selfflow train --dryrun`.", "the following arguments are required: config"),
        ("    selfflow train configs/quickstart.yaml run=r training.stepps=3", "stepps"),
        ("    selfflow compare configs/studies/tiny.yaml --set metrix=3", "metrix"),
        ("    selfflow train configs/quickstart.yaml run", "'run': expected key=value"),
    ],
)
def test_what_is_wrong_is_found(typed, said):
    (line,) = problems("page", typed)
    assert said in line
