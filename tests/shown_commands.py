"""The commands that documentation and --help show, as what one would type."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
_START = re.compile(r"(?:^|(?<=[\s`\"/]))(?:selfflow|-m tools\.cli)\s+(?=(?:--help|" + "|".join(COMMANDS) + r")\b)")
_END = re.compile(r"\s#\s|\s{3,}(?=[A-Za-z(])|\s[|&<>;]+(?=\s|$)|\s>\S|`")  # a remark, a pipe, the end of inline code

_LONGEST = 12  # lines


class Shown(NamedTuple):
    """A command.

    Attributes:
        where: page or --help that it stands in.
        words: after `selfflow`.
        inline: in the middle of a sentence, where what does not matter to it may be left out.
    """

    where: str
    words: list[str]
    inline: bool


def pages() -> list[Path]:
    """Everything people read: pages, examples, recipes, and configurations with commands in their comments."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "examples").rglob("*.md")]
    found += [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".py", ".sbatch", ".yaml")]
    return sorted({*found, *(ROOT / "configs").rglob("*.yaml")})


def epilogs() -> Iterator[tuple[str, str]]:
    """(name, text) of what --help of every command shows below the options."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                yield f"selfflow {name} --help", parser.epilog or ""


def shown(where: str, text: str) -> Iterator[Shown]:
    """Commands in a text. Those that are only named (`selfflow compare`), or have placeholders such as [RUN ...],
    are left out."""
    for match in _START.finditer(text):
        inline = text[: match.start()].split("\n\n")[-1].count("`") % 2 == 1
        typed = _typed(text[match.end() :], inline)
        if typed is None or "..." in typed or re.search(r"\[[A-Z-]|\bCOMMAND\b", typed):
            continue
        words = shlex.split(typed)
        if len(words) > 1:
            yield Shown(where, words, inline)


def _typed(text: str, inline: bool) -> str | None:
    """The beginning of a text up to the end of its command, over lines that end in a backslash or inside quotes; None
    where that is nowhere."""
    typed = ""
    for line in text.splitlines()[:_LONGEST]:
        line = re.sub(r"^\s*#\s", "", line) if typed else line  # a comment of a YAML file that goes on
        typed += line if not typed else " " + line.strip()
        if inline and "`" not in typed:
            continue
        if not inline and typed.endswith("\\"):
            typed = typed.removesuffix("\\")
            continue
        cut = typed.split("`")[0] if inline else typed
        for end in [*(found.start() for found in _END.finditer(cut)), len(cut)]:
            try:
                shlex.split(cut[:end])
            except ValueError:
                continue  # inside quotes
            return cut[:end]
    return None
