"""Sections whose dataclass depends on a setting in them, their kind: a setting of another kind is simply unknown."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from core.errors import ConfigError, choose

Row = TypeVar("Row")


@dataclass(frozen=True)
class Kinds:
    """The dataclasses that a section may have, one for each kind; a setting in the section names the kind.

        source: SourceConfig = field(default_factory=FolderConfig, metadata=kinds(SOURCES))

    A section that names another kind than the one under it replaces it: nothing stays of what was set for that kind,
    unless `keeps`.

    Attributes:
        rows: kind -> dataclass, all with one base class; or a function that returns this, where the table is not yet
            complete. The first kind is that of a section that names none.
        key: the setting that names the kind; or several, whose values together are the kind (`combined`).
        keeps: what was set for the former kind stays where the new one has such a setting, too.
    """

    rows: Mapping[Any, type] | Callable[[], Mapping[Any, type]]
    key: str | tuple[str, ...] = "kind"
    keeps: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def table(self) -> Mapping[tuple[str, ...], type]:
        rows = self.rows() if callable(self.rows) else self.rows
        return {(kind,) if isinstance(kind, str) else kind: row for kind, row in rows.items()}

    def named(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The kind that the plain values of a section name: a value of each key."""
        first = next(iter(self.table))
        return tuple(values.get(key, usual) for key, usual in zip(self.keys, first, strict=True))

    def schema(self, values: Mapping[str, Any]) -> type:
        """The dataclass of a section. Raises ConfigError for a kind that does not exist."""
        return row(self.table, dict(zip(self.keys, self.named(values), strict=True)))

    def said(self, values: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
        """Of a setting that the kind of a section does not have: "kind 'folder'", and the kinds that have it."""
        named = self.named(values)
        having = [kind for kind, row in self.table.items() if name in field_names(row)]
        for place, key in enumerate(self.keys):
            kinds = list(dict.fromkeys(kind[place] for kind in having))
            if named[place] not in kinds:
                return f"{key} {named[place]!r}", kinds
        return f"{self.keys[0]} {named[0]!r}", []

    def kept(self, under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        """What stays of a section when `over` is laid on top of it."""
        kind = self.named(under | {key: over[key] for key in self.keys if key in over})
        if kind == self.named(under):
            return under
        known = self.keeps and all(isinstance(name, str) for name in kind)
        schema = self.table.get(kind) if known else None
        names = [] if schema is None else field_names(schema)
        return {name: value for name, value in under.items() if name in names}


def kinds(
    rows: Mapping[Any, type] | Callable[[], Mapping[Any, type]],
    key: str | tuple[str, ...] = "kind",
    keeps: bool = False,
) -> dict[str, Kinds]:
    """Metadata of a field that holds such a section, or a dict or list of them; see `Kinds`."""
    return {"kinds": Kinds(rows, key, keeps)}


def kinds_of(field: dataclasses.Field[Any]) -> Kinds | None:
    return field.metadata.get("kinds")


def field_names(schema: type) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)]


def combined(
    base: type[Row], module: str, tables: Mapping[str, Mapping[str, type]]
) -> dict[tuple[str, ...], type[Row]]:
    """kinds -> dataclass, for every combination.

    Args:
        base: what all of them are.
        module: name of the module that calls; the dataclasses become members of it, so that they can be pickled.
        tables: setting -> kind -> dataclass. Methods of a later table win.
    """
    found: dict[tuple[str, ...], type[Any]] = {}
    for names in itertools.product(*tables.values()):
        rows = [table[name] for table, name in zip(tables.values(), names, strict=True)]
        bases = [base for base in reversed(rows) if not any(base in other.__mro__[1:] for other in rows)]
        own = [(key, str, dataclasses.field(default=name)) for key, name in zip(tables, names, strict=True)]
        made = dataclasses.make_dataclass("_".join([base.__name__, *names]), own, bases=tuple(dict.fromkeys(bases)))
        made.__module__ = module
        setattr(sys.modules[module], made.__name__, made)
        found[names] = made
    return found


def row(table: Mapping[tuple[str, ...], Row], named: Mapping[str, Any]) -> Row:
    """The row of a kind, of which `named` has the value of each setting that names it.

    Raises ConfigError with a line for each setting whose value is in no row.
    """
    found: list[str] = []
    for place, (key, name) in enumerate(named.items()):
        try:
            choose(key, name, {kind[place]: kind for kind in table})
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)
    return table[tuple(named.values())]
