"""Sections whose dataclass depends on what is set: on settings beside them, or on one in them (`core.kinds.Kinds`)."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError
from core.kinds import Kinds, field_names, kinds_of

Choose = Callable[[dict[str, Any], str], type | None]  # (values of a section, its name) -> schema of a field in it


def section(choose: Choose) -> Any:
    """A field of a dataclass whose own schema depends on its neighbors: annotate it with `Any`.

    Args:
        choose: given the settings of the section around it (plain values) and the name of that section, the dataclass
            of the field, or None for a field that stays None. May raise ConfigError.
    """
    return dataclasses.field(default=None, metadata={"section": choose})


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

    def sections(self, values: Mapping[str, Any], name: str = "", path: tuple[str, ...] = ()) -> Iterator[Section]:
        """Every section with kinds at and below this place, of plain values that a run was stored with."""
        if self.kinds is not None and is_section(self.hint):
            yield Section(path, self.kinds, values)
        for key, value in values.items():
            inner = self.inside(key, dict(values), name) if isinstance(value, dict) else None
            if inner is not None:
                yield from inner.sections(value, key, (*path, key))


@dataclass(frozen=True)
class Section:
    """A section with kinds: where it stands, and its plain values."""

    path: tuple[str, ...]
    kinds: Kinds
    values: Mapping[str, Any]

    def foreign(self) -> list[str]:
        """Settings that other kinds have, and this one does not. Raises ConfigError for a kind that does not exist."""
        own = field_names(self.kinds.schema(self.values))
        return [name for name in self.values if name not in own and self.kinds.said(self.values, name)[1]]
