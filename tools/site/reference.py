"""The configuration as a page: every section with its settings, their defaults and what their docstrings say."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from core.kinds import kinds_of
from core.training.sections import is_section, without_none

INTRODUCTION = """# Configuration

Every setting, its default and its meaning, made from the dataclasses that read it. A section with a `kind` (or a
`solver`) has the settings of that kind alone; a setting of another kind is an error that names the kind it belongs to.
`selfflow train CONFIG --print-config` prints a resolved configuration.
"""


def configuration_page(root: type, others: Mapping[str, type] = MappingProxyType({})) -> str:
    """Markdown of a dataclass and of all sections under it, each once.

    Args:
        others: place -> sections whose dataclass no field names, since it depends on other settings.
    """
    lines, seen, waiting = [INTRODUCTION], set(), [("", root), *others.items()]
    while waiting:
        place, schema = waiting.pop(0)
        if schema in seen:
            continue
        seen.add(schema)
        lines.append(section(place or "the file", schema))
        waiting += [(f"{place}.{name}".lstrip("."), child) for name, child in children(schema)]
    return "\n".join(lines)


def children(schema: type) -> Iterator[tuple[str, type]]:
    """Key, with a placeholder for names that people choose, -> the sections of a dataclass, all kinds of each."""
    hints = typing.get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        hint, _ = without_none(hints[entry.name])
        inner = next((each for each in typing.get_args(hint)[::-1] if is_section(each)), hint)
        key = f"{entry.name}.NAME" if typing.get_origin(hint) is dict else entry.name
        kinds = kinds_of(entry)
        if kinds is not None:
            for kind, row in kinds.table.items():
                if is_section(row):
                    names = ", ".join(f"{setting}: {name}" for setting, name in zip(kinds.keys, kind, strict=True))
                    yield f"{key} ({names})", row
        elif is_section(inner):
            yield key, inner


def section(place: str, schema: type) -> str:
    """Heading, what the docstring says first, and a table of the settings."""
    said = meanings(schema)
    first = inspect.cleandoc(own_docstring(schema)).partition("\n\n")[0]
    about = "" if first.startswith(("Attributes:", "Args:")) else " ".join(first.split())
    rows = [
        f"| `{entry.name}` | {default(entry)} | {cell(said.get(entry.name, ''))} |"
        for entry in dataclasses.fields(schema)
    ]
    return "\n".join(
        [f"## `{place}`\n", cell(about), "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    )


def own_docstring(schema: type) -> str:
    """Without the signature that `dataclass` writes where there is none."""
    text = schema.__doc__ or ""
    return "" if text.startswith(f"{schema.__name__}(") else text


def meanings(schema: type) -> dict[str, str]:
    """Setting -> its lines under "Attributes:", of the class and of those that it is derived from."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__):
        _, _, block = inspect.cleandoc(own_docstring(each)).partition("Attributes:\n")
        names: list[str] = []
        for line in block.split("\n"):
            if line and not line.startswith(" "):
                break
            start = re.match(r"    ([\w, ]+?): (.*)", line)
            if start and not line.startswith("     "):
                names = [name.strip() for name in start[1].split(",")]
                found |= dict.fromkeys(names, start[2])
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def default(entry: dataclasses.Field) -> str:
    if entry.default is not dataclasses.MISSING:
        value = entry.default
    elif entry.default_factory is not dataclasses.MISSING:
        value = entry.default_factory()
    else:
        return "must be set"
    if dataclasses.is_dataclass(value):
        return "a section"
    if value is None:
        return "null"
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)
    return f"`{shown or repr('')}`" if shown != "" else "empty"


def cell(text: str) -> str:
    """One line of a table; brackets and stars of the text are no markup."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", text)
