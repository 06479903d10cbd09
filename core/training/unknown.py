"""What an unknown key was meant to be: looked for in the whole tree of settings, and among other projects' names."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.errors import ConfigError, nearest
from core.kinds import Kinds, kinds_of
from core.training.sections import is_section, without_none

Keys = tuple[str, ...]

ANY = "*"  # in an alias: any one part of a key
ENTRY = "NAME"  # of a dict of sections, whose names the user chooses
CLOSE, CLOSER = 0.6, 0.8  # likeness of two names, of difflib
SHOWN = 3  # further keys that are named


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A key that the schema does not have: what it was set to, and the keys that are allowed in its place.

    `of` is, where the schema is that of a kind of sections, this kind in words, and the kinds that have the key.
    """

    value: Any
    allowed: list[str]
    of: tuple[str, list[str]] | None = None


def explain_unknown(
    noted: list[tuple[Keys, str | Unknown]], schema: type, values: dict[str, Any], aliases: Mapping[str, Iterable[str]]
) -> list[tuple[Keys, str]]:
    """The same, in words; `values` are all settings, nested, and `aliases` as of `KnownKeys`."""
    words = [(key, what) for key, what in noted if not isinstance(what, Unknown)]
    if len(words) == len(noted):
        return words
    known = KnownKeys(schema, aliases, values)
    return [(key, _explained(known, key, what, values) if isinstance(what, Unknown) else what) for key, what in noted]


def _explained(known: KnownKeys, key: Keys, what: Unknown, values: Mapping[str, Any]) -> str:
    of, having = what.of or ("", [])
    place = f" of {of}" if of else ""
    hint = f" It belongs to {of.split()[0]} {', '.join(having)}." if having else ""
    meant = hint or known.meant(key, what.value, what.allowed, values)
    return f"unknown key{place}; allowed: {', '.join(what.allowed)}.{meant}"


class KnownKeys:
    """Every key of a schema.

    Args:
        schema: a dataclass of dataclasses.
        aliases: a name that other projects use -> our dotted keys, whose parts may be `*`, in order of preference. A
            key that exists nowhere is an error in the table, which a test of the table should find with `expand`.
        given: all settings, nested: what the sections of a dict are called, and which schema a section has whose own
            depends on its neighbors.
    """

    def __init__(
        self, schema: type, aliases: Mapping[str, Iterable[str]] | None = None, given: Mapping[str, Any] | None = None
    ):
        self.keys = dict(_keys(schema, (), (), (), given or {}))  # -> the sections above it that may be absent
        self.aliases = {_plain(name): list(keys) for name, keys in (aliases or {}).items()}

    def expand(self, pattern: str) -> list[Keys]:
        """The keys that a dotted pattern of the table of aliases means."""
        wanted = pattern.split(".")
        return [
            key
            for key in self.keys
            if len(key) == len(wanted) and all(w in (ANY, part) for w, part in zip(wanted, key, strict=True))
        ]

    def meant(self, path: Keys, value: Any, siblings: list[str], given: Mapping[str, Any]) -> str:
        """' Did you mean: ...?' for an unknown key, or '' when nothing is close.

        Args:
            path: of the unknown key, from the root.
            value: what it was set to; a section with one setting stands for that setting.
            siblings: the keys that are allowed in its place.
            given: all settings, nested; keys of sections that are absent are named only where there are no others.
        """
        own = path[-1]
        if _plain(own) not in self.aliases and difflib.get_close_matches(own, siblings, n=1, cutoff=CLOSER):
            return nearest(own, siblings)
        found = self._sections(path) if isinstance(value, dict) else []
        while not found and isinstance(value, dict) and len(value) == 1:
            ((name, value),) = value.items()
            path = (*path, str(name))
        found = found or self._named(path) or self._alike(path)
        if not found:
            return nearest(own, siblings)
        there = [key for key in found if all(_is_there(section, given) for section in self.keys[key])]
        first, *others = [_shown(key, path) for key in there or found]
        also = f" Also: {', '.join(others[:SHOWN])}{', ...' if len(others) > SHOWN else ''}." if others else ""
        return f" Did you mean: {first}?{also}"

    def _sections(self, path: Keys) -> list[Keys]:
        """Sections that others call by just this name, and what has no other meaning by it."""
        found = self._aliased(path) if not any(_plain(key[-1]) == _plain(path[-1]) for key in self.keys) else []
        inner = {key[:-1] for key in self.keys}
        alone = len(self.aliases.get(_plain(path[-1]), ())) == 1
        return [key for key in found if alone or key in inner]

    def _aliased(self, path: Keys) -> list[Keys]:
        """Keys that others call by the last name of a path."""
        aliases = [self.expand(pattern) for pattern in self.aliases.get(_plain(path[-1]), ())]
        return [key for keys in aliases for key in sorted(keys, key=lambda key: -_shared(key, path))]

    def _named(self, path: Keys) -> list[Keys]:
        """Keys that end in just this name, or that others call so; the nearest in the tree come first."""
        name = _plain(path[-1])
        same = [key for key in self.keys if _plain(key[-1]) == name]
        if not same:
            return self._aliased(path)
        fitting = [key for key in same if _fits(path[:-1], key[:-1])]
        usual = {key for pattern in self.aliases.get(name, ()) for key in self.expand(pattern)}
        # Of equally near ones, the usual meaning of the name comes first, then those of sections that are always there.
        return sorted(
            fitting or same, key=lambda key: (-_shared(key, path), key not in usual, len(key), len(self.keys[key]))
        )

    def _alike(self, path: Keys) -> list[Keys]:
        """Keys with a name like this one, ours or of others."""
        known = {key[-1] for key in self.keys} | set(self.aliases)
        names = difflib.get_close_matches(_plain(path[-1]), sorted(known), n=1, cutoff=CLOSER)
        return self._named((*path[:-1], names[0])) if names else []


def _keys(
    hint: Any, path: Keys, above: tuple[type, ...], absent: tuple[Keys, ...], given: Any, kinds: Kinds | None = None
) -> Iterator[tuple[Keys, tuple[Keys, ...]]]:
    """Keys at and below a place, of whichever kind; a section inside a section of its own kind is not entered again."""
    given = given if isinstance(given, Mapping) else {}
    hint, optional = without_none(hint)
    if optional and is_section(hint):
        absent = (*absent, path)
    if path:
        yield path, absent
    if is_section(hint):
        for schema in (hint,) if kinds is None else kinds.table.values():
            if schema not in above:
                yield from _keys_of_fields(schema, path, (*above, schema), absent, given)
    elif typing.get_origin(hint) is dict and is_section(inner := typing.get_args(hint)[1]):
        named = {name: own for name, own in given.items() if own is not None}  # those that are null are left out
        for name, own in named.items() or [(ENTRY, {})]:
            yield from _keys(inner, (*path, name), above, (*absent, (*path, name) if own else path), own, kinds)


def _keys_of_fields(
    schema: type, path: Keys, above: tuple[type, ...], absent: tuple[Keys, ...], given: Mapping[str, Any]
) -> Iterator[tuple[Keys, tuple[Keys, ...]]]:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        inner = hints[field.name]
        if choose := field.metadata.get("section"):
            try:
                inner = choose(given, path[-1])
            except ConfigError:
                continue
        yield from _keys(inner, (*path, field.name), above, absent, given.get(field.name), kinds_of(field))


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _shared(key: Keys, path: Keys) -> int:
    """Parts at the beginning of both."""
    count = 0
    for a, b in zip(key, path, strict=False):
        if a != b:
            break
        count += 1
    return count


def _fits(wanted: Keys, parts: Keys) -> bool:
    """Whether names like the wanted ones occur among the parts, in order."""
    place = 0
    for name in map(_plain, wanted):
        while place < len(parts) and not _like(name, parts[place]):
            place += 1
        if place == len(parts):
            return False
        place += 1
    return True


def _like(name: str, part: str) -> bool:
    return part.startswith(name) or difflib.SequenceMatcher(None, name, part).ratio() >= CLOSE


def _is_there(path: Keys, given: Any) -> bool:
    """Whether the settings have this section."""
    for part in path:
        given = given.get(part) if isinstance(given, dict) else None
    return bool(given)


def _shown(key: Keys, path: Keys) -> str:
    """In full, or by its name alone where it belongs in the same section."""
    return repr(key[-1] if key[:-1] == path[:-1] else ".".join(key))
