"""Sections whose dataclass depends on what is set: on settings beside them (`section`), or on one in them (`Kinds`)."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError
from core.errors import choose as choose_row

Choose = Callable[[dict[str, Any], str], type | None]  # (values of a section, its name) -> schema of a field in it


def section(choose: Choose) -> Any:
    """A field of a dataclass whose own schema depends on its neighbors: annotate it with `Any`.

    Args:
        choose: given the settings of the section around it (plain values) and the name of that section, the dataclass
            of the field, or None for a field that stays None. May raise ConfigError.
    """
    return dataclasses.field(default=None, metadata={"section": choose})


@dataclass(frozen=True)
class Kinds:
    """The dataclasses that a section may have, one for each kind; a setting in the section names the kind.

        source: SourceConfig = field(default_factory=FolderConfig, metadata=kinds(SOURCES))

    A section that names another kind than the one under it replaces it: nothing stays of what was set for that kind,
    unless `keeps`.

    Attributes:
        rows: kind -> dataclass, all with one base class; or a function that returns this, where the table is not yet
            complete. The first kind is that of a section that names none.
        key: the setting that names the kind.
        keeps: what was set for the former kind stays where the new one has such a setting, too.
    """

    rows: Mapping[str, type] | Callable[[], Mapping[str, type]]
    key: str = "kind"
    keeps: bool = False

    @property
    def table(self) -> Mapping[str, type]:
        return self.rows() if callable(self.rows) else self.rows

    def named(self, values: Mapping[str, Any]) -> Any:
        """The kind that the plain values of a section name."""
        return values.get(self.key, next(iter(self.table)))

    def schema(self, values: Mapping[str, Any]) -> type:
        """The dataclass of a section. Raises ConfigError for a kind that does not exist."""
        return choose_row(self.key, self.named(values), self.table)

    def said(self, values: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
        """Of a setting that the kind of a section does not have: "kind 'folder'", and the kinds that have it."""
        having = [kind for kind, row in self.table.items() if name in field_names(row)]
        return f"{self.key} {self.named(values)!r}", having

    def kept(self, under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        """What stays of a section when `over` is laid on top of it."""
        kind = over.get(self.key, self.named(under))
        if kind == self.named(under):
            return under
        names = field_names(self.table[kind]) if self.keeps and isinstance(kind, str) and kind in self.table else []
        return {name: value for name, value in under.items() if name in names}


def kinds(
    rows: Mapping[str, type] | Callable[[], Mapping[str, type]], key: str = "kind", keeps: bool = False
) -> dict[str, Kinds]:
    """Metadata of a field that holds such a section, or a dict or list of them; see `Kinds`."""
    return {"kinds": Kinds(rows, key, keeps)}


def kinds_of(field: dataclasses.Field[Any]) -> Kinds | None:
    return field.metadata.get("kinds")


def field_names(schema: type) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)]


def without_none(hint: Any) -> tuple[Any, bool]:
    """Optional[X] -> (X, True)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        if len(kept) == 1 and len(kept) < len(typing.get_args(hint)):
            return kept[0], True
    return hint, False


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


@dataclass(frozen=True)
class Place:
    """Where in a schema a section stands: its type (a dataclass, or a dict of them), and its kinds."""

    hint: Any
    kinds: Kinds | None = None

    def inside(self, key: str, values: dict[str, Any], name: str) -> Place | None:
        """The place of a section in this one, or None where the schema has none.

        Args:
            values, name: plain values of this section, and what it is called.
        """
        if typing.get_origin(self.hint) is dict:
            inner = typing.get_args(self.hint)[1]
            return Place(inner, self.kinds) if is_section(inner) else None
        try:
            schema = self.hint if self.kinds is None else self.kinds.schema(values)
            field = next((each for each in dataclasses.fields(schema) if each.name == key), None)
            if field is None:
                return None
            choose = field.metadata.get("section")
            hint = typing.get_type_hints(schema)[key] if choose is None else choose(values, name)
        except ConfigError:
            return None  # said where the section is read
        hint, _ = without_none(hint)
        return Place(hint, kinds_of(field)) if is_section(hint) or typing.get_origin(hint) is dict else None

    def kept(self, under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        """What stays of a section here when `over` is laid on top of it."""
        return self.kinds.kept(under, over) if self.kinds is not None and is_section(self.hint) else under
