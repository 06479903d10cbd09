"""What the user wrote, and where: YAML files with line numbers, their `base`, and `key=value` overrides."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.errors import ConfigError, nearest
from core.training.sections import Place

Keys = tuple[str, ...]  # from the root to a setting


class _Loader(yaml.SafeLoader):
    """YAML with the plain types of YAML 1.2: `off` and `no` are text, 1e-4 is a number, dates are text."""


_Loader.yaml_implicit_resolvers = {}  # none of those of YAML 1.1
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])


@dataclass
class UserSettings:
    """What the user wrote: nested plain values, and for each key where it stands and its text."""

    values: dict[str, Any]
    where: dict[Keys, str]
    text: dict[Keys, str]
    problems: list[str]

    def locate(self, path: Keys, fallback: str) -> str:
        """Where the key stands, or else the first setting below it, or else the nearest section above it."""
        if path and path not in self.where:  # `sectoin.key=3` on the command line names no place for `sectoin`
            below = [at for keys, at in self.where.items() if keys[: len(path)] == path]
            if below:
                return below[0]
        for length in range(len(path), 0, -1):
            if path[:length] in self.where:
                return self.where[path[:length]]
        return fallback

    def add(self, over: UserSettings, place: Place | None = None) -> None:
        """Merge `over` on top, see `merge`."""
        self.values = merge(self.values, over.values, place)
        self.where |= over.where
        self.text |= over.text
        self.problems += over.problems

    def imply(self, key: Keys, value: Any, source: Keys) -> None:
        """Set a key as if it stood where `source` does, with its text."""
        section = self.values
        for part in key[:-1]:
            section = section.setdefault(part, {})
        section[key[-1]] = copy.deepcopy(value)
        self.where[key] = self.locate(source, "")
        below = {keys: text for keys, text in self.text.items() if keys[: len(source)] == source}
        self.text |= {(*key, *keys[len(source) :]): text for keys, text in below.items()}


def merge(under: dict[str, Any], over: dict[str, Any], place: Place | None = None, name: str = "") -> dict[str, Any]:
    """A new dict: `over` on top of `under`, nested dicts key by key.

    Args:
        place: where the two stand in a schema. A section there of which `over` names another kind begins anew, since
            what is set for one kind would be refused by the other; see `Kinds`.
        name: what they are called there.
    """
    merged, together = dict(under), under | over
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            inner = place and place.inside(key, together, name)
            value = merge(below if inner is None else inner.kept(below, value), value, inner, key)
        merged[key] = value
    return merged


def read_settings(
    path: Path, place: Place | None = None, above: tuple[Path, ...] = (), named_at: str = ""
) -> UserSettings:
    """One file, on top of the file that its `base` names; `place` as of `merge`."""
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{named_at}{_missing_file(path, error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not a text file in UTF-8 (byte {error.start})") from error
    user = UserSettings({}, {}, {}, [])
    loader = _Loader(source)
    values: Any = {}
    try:
        node = loader.get_single_node()
        if node is not None:
            values = _plain(node, loader, path.name, (), user)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None  # the parser gives one of them
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path.name}:{mark.line + 1}:{mark.column + 1}: not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name}:1: expected `key: value` lines, got {shown(values)}")
    user.values = values
    base = values.pop("base", None)
    if base is None:
        return user
    at = f"{user.where[('base',)]}: base: "
    if not isinstance(base, str):
        raise ConfigError(f"{at}expected the name of a YAML file, got {shown(base)}")
    chain = (*above, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise ConfigError(f"{at}{base} leads back to itself: {' -> '.join(item.name for item in chain)} -> {base}")
    under = read_settings(path.parent / base, place, chain, at)
    under.add(user, place)
    return under


def _missing_file(path: Path, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"{path}: cannot be read ({error.strerror})"
    if not path.parent.is_dir():
        return f"{path}: no such file; the folder {path.parent} does not exist"
    names = sorted(item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml"))
    listed = f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else "no YAML file"
    return f"{path}: no such file; the folder has {listed}.{nearest(path.name, names)}"


def _plain(node: yaml.Node, loader: _Loader, file: str, path: Keys, user: UserSettings) -> Any:
    """The plain value of a YAML node; notes line and text of every key in `user`."""
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            key, at = key_node.value, f"{file}:{key_node.start_mark.line + 1}"
            inner = (*path, key)
            if key in values:
                user.problems.append(f"{at}: {'.'.join(inner)}: given twice, first at {user.where[inner]}")
                continue
            user.where[inner] = at
            values[key] = _plain(value_node, loader, file, inner, user)
        return values
    if isinstance(node, yaml.SequenceNode):
        found = []
        for index, item in enumerate(node.value):
            user.where[(*path, str(index))] = f"{file}:{item.start_mark.line + 1}"
            found.append(_plain(item, loader, file, (*path, str(index)), user))
        return found
    user.text[path] = node.value
    return loader.construct_object(node, deep=True)


def parse_override(override: str) -> UserSettings:
    """`a.b=value` -> {"a": {"b": value}}; the value is YAML, and its text is kept for settings that are text."""
    at = f"command line {override!r}"
    user = UserSettings({}, {}, {}, [])
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(re.fullmatch(r"[\w-]+", part) for part in path):
        user.problems.append(f"{at}: expected key=value with a dotted key, like training.steps=100")
        return user
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        value: Any = None if node is None else _plain(node, loader, at, path, user)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error)
        user.problems.append(f"{at}: the value is not valid YAML ({reason}); quote text that holds : {{ }} [ ] or #")
        return user
    user.where = dict.fromkeys([path, *user.where], at)
    user.text[path] = text
    for part in reversed(path):
        value = {part: value}
    user.values = value
    return user


def shown(value: Any) -> str:
    shown = "null" if value is None else repr(value)
    return f"{shown[:77]}..." if len(shown) > 80 else shown
