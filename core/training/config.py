"""From YAML files and `key=value` overrides to a typed configuration, with every problem named at once.

The schema is a tree of dataclasses, merged with OmegaConf structured configs. What wins, from weak to strong: defaults
of the schema, the preset, the file named by `base`, the file itself, the command line. A problem is one line:

    joint.yaml:4: objective.gama: unknown key; allowed: gamma, kind. Did you mean: 'gamma'?
    command line 'training.steps=soon': training.steps: expected int, got 'soon'
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.errors import ConfigError, nearest
from core.kinds import Kinds, field_names, kinds_of
from core.training.sections import Choose, Place, is_section, without_none
from core.training.settings import Keys, UserSettings, merge, parse_override, read_settings, shown
from core.training.unknown import Unknown, explain_unknown

ABSENT = "(not there)"
COMPILE = "training.compile"

Noted = list[tuple[Keys, str | Unknown]]


def load(
    schema: type,
    path: Path,
    overrides: Sequence[str] = (),
    presets: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    aliases: Mapping[str, Iterable[str]] | None = None,
    implied: Iterable[Callable[[dict[str, Any]], Iterable[tuple[Keys, Any, Keys]]]] = (),
) -> Any:
    """An instance of the dataclass `schema`.

    Args:
        path: YAML file. Its top-level key `base: other.yaml` names a file, relative to it, that is merged first.
        overrides: `dotted.key=value`, the value read as YAML. They count as one file, so that their order does not
            matter where one of them names another kind of a section (`Kinds`).
        presets: given the user's settings (files and overrides), returns settings that lie under them.
        aliases: names of other projects -> our keys, see `KnownKeys`.
        implied: each, given the user's settings, names (key, value, key it follows from) of settings that the user has
            left out; the next one sees them too.
    Raises ConfigError with one line for every problem found: YAML syntax, keys given twice, unknown keys, wrong types,
    numbers that are not finite, and what the `problems()` methods of the dataclasses say.
    """
    path = Path(path)
    place = Place(schema)
    user, given = read_settings(path, place), UserSettings({}, {}, {}, [])
    for override in overrides:
        given.add(parse_override(override))
    user.add(given, place)
    for rule in implied:
        for key, value, source in list(rule(user.values)):
            user.imply(key, value, source)
    problems = list(user.problems)
    preset = {}
    if presets is not None:
        try:
            preset = presets(user.values)
        except ConfigError as error:
            problems += [f"{user.locate(_split(line)[0], path.name)}: {line}" for line in error.problems]

    config, values = OmegaConf.structured(schema), merge(preset, user.values, place)
    noted: Noted = []
    _fill(config, schema, values, (), user.text, noted)
    found = explain_unknown(noted, schema, values, aliases or {})
    built: Any = None
    try:
        missing = OmegaConf.missing_keys(config)
        found += [(tuple(key.split(".")), "required, but not set") for key in sorted(missing)]
        built = None if missing else OmegaConf.to_object(config)
    except OmegaConfBaseException as error:  # an interpolation ${...} that leads nowhere or to a wrong type
        found.append((tuple((error.full_key or "").split(".")), str(error.msg or error).splitlines()[0]))
    else:
        found += [(key, f"{value} is not a finite number") for key, value in _leaves(built) if _not_finite(value)]
        wrong = {key for key, _ in found}  # nothing more is reported for these: "nan must be above 0" would mislead
        found += [item for item in _own_problems(built, ()) if item[0] not in wrong]
    problems += [f"{user.locate(key, path.name)}: {'.'.join(key)}{': ' * bool(key)}{what}" for key, what in found]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return built


def from_plain(schema: type, values: dict[str, Any]) -> Any:
    """An instance of the dataclass `schema` from what `to_plain` made of one. Raises ConfigError for other values."""
    config, found = OmegaConf.structured(schema), []
    _fill(config, schema, values, (), {}, found)
    if found:
        raise ConfigError(f"{'.'.join(key)}: {what}" for key, what in explain_unknown(found, schema, values, {}))
    return OmegaConf.to_object(config)


def to_plain(config: Any) -> dict[str, Any]:
    """Nested dicts, lists, numbers and strings of a configuration."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast("dict[str, Any]", plain)  # the fields of a dataclass


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)


def read_plain(path: Path) -> dict[str, Any]:
    """Nested plain values of one YAML file, with `base` followed, without a schema."""
    user = read_settings(Path(path))
    if user.problems:
        raise ConfigError(user.problems)
    return user.values


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two plain configurations differ."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after or type(before) is not type(after):
            found.append((f"{prefix}{key}", before, after))
    return found


def refuse_changes(old: dict[str, Any], new: dict[str, Any], free: set[str]) -> None:
    """Raise a ConfigError that names every changed setting, unless it is in `free` or inside a section in `free`."""
    sections = tuple(f"{name.removesuffix('.')}." for name in free)
    changed = [item for item in differences(old, new) if not f"{item[0]}.".startswith(sections)]
    if changed:
        raise ConfigError(
            [f"{key}: {before!r} when the run was started, {after!r} now" for key, before, after in changed]
            + [changes_advice([(key, after) for key, _, after in changed])]
        )


def changes_advice(wanted: list[tuple[str, Any]]) -> str:
    """What to type to resume a run with other settings."""
    first = " ".join(f"--change {as_argument(key, value)}" for key, value in wanted[:3] if value is not ABSENT)
    more = " ..." if len(wanted) > 3 else ""
    return (
        "A run is resumed with the settings that it has. To change them from here on, add "
        f"{first or '--change KEY=VALUE'}{more}; or use another run folder."
    )


def as_argument(key: str, value: Any) -> str:
    """`key=value` for a shell, which `parse_override` reads back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
    return shlex.quote(f"{key}={text}")


def validated(schema: type, plain: dict[str, Any]) -> Any:
    """An instance of the dataclass from plain values. Raises ConfigError with what its `problems()` say."""
    config = from_plain(schema, plain)
    if found := [f"{'.'.join(key)}{': ' * bool(key)}{what}" for key, what in _own_problems(config, ())]:
        raise ConfigError(dict.fromkeys(found))
    return config


def of_other_kinds(schema: type, stored: dict[str, Any]) -> list[str]:
    """Dotted keys of stored settings that the kind of their section does not have, and another kind has.

    A run of an earlier version may hold them; nothing read them then either.
    """
    return [".".join((*section.path, name)) for section in Place(schema).sections(stored) for name in section.foreign()]


def stored_instance(schema: type, stored: dict[str, Any]) -> Any:
    """An instance of the dataclass from what a run of this or an earlier version was stored with."""
    for key in of_other_kinds(schema, stored):
        stored = with_value(stored, key, ABSENT)
    return from_plain(schema, in_words_of_now(stored))


def in_words_of_now(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings whose values had other words in an earlier version: `training.compile` was true or false."""
    known = value_at(stored, COMPILE)
    return with_value(stored, COMPILE, "on" if known else "off") if isinstance(known, bool) else stored


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, ABSENT where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


def with_value(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A new dict with a dotted key set, or taken out where `value` is ABSENT."""
    name, _, rest = key.partition(".")
    if rest:
        inner = config.get(name)
        return config | {name: with_value(inner if isinstance(inner, dict) else {}, rest, value)}
    if value is ABSENT:
        return {other: kept for other, kept in config.items() if other != name}
    return config | {name: value}


def _fill(
    node: DictConfig,
    schema: type,
    values: Any,
    path: Keys,
    text: dict[Keys, str],
    found: Noted,
    kinds: Kinds | None = None,
) -> None:
    """Set `values` in the structured node of a dataclass, noting what does not fit instead of stopping at it."""
    hints, entries = typing.get_type_hints(schema), {field.name: field for field in dataclasses.fields(schema)}
    if not isinstance(values, dict):
        found.append((path, _expected(schema, values)))
        return
    chosen = {name: entry.metadata["section"] for name, entry in entries.items() if "section" in entry.metadata}
    for key, choose in chosen.items():
        _fill_chosen(node, key, choose, values, (*path, key), text, found)
    for key, value in values.items():
        inner = (*path, key)
        if key in chosen:
            continue
        if key not in entries:
            found.append((inner, Unknown(value, list(entries), kinds and kinds.said(values, key))))
            continue
        hint, optional = without_none(hints[key])
        kind, arguments, its = typing.get_origin(hint), typing.get_args(hint), kinds_of(entries[key])
        if value is None and optional:
            node[key] = None
        elif is_section(hint):
            _fill_section(node, key, hint, value, inner, text, found, its)
        elif kind is dict and is_section(arguments[1]) and isinstance(value, dict):
            for name, entry in value.items():
                if entry is None:  # of a file below, and left out here
                    continue
                _fill_section(node[key], name, arguments[1], entry, (*inner, name), text, found, its)
        elif kind is list and is_section(arguments[0]) and isinstance(value, list):
            node[key] = []
            for index, entry in enumerate(value):
                _fill_section(node[key], "", arguments[0], entry, (*inner, str(index)), text, found, its)
        elif kind is dict and (value is None or isinstance(value, dict)):
            given = {name: entry for name, entry in (value or {}).items() if entry is not None}  # null: left out here
            _fill_value(node, key, hint, given, inner, text, found)
        else:
            _fill_value(node, key, hint, value, inner, text, found)


def _fill_section(
    node: DictConfig | ListConfig,
    key: str,
    schema: type,
    values: Any,
    path: Keys,
    text: dict[Keys, str],
    found: Noted,
    kinds: Kinds | None,
) -> None:
    """A nested dataclass; one that is absent so far is created when the user gives settings for it.

    In a list it is put at the end.
    """
    if not isinstance(values, dict):
        found.append((path, _expected(schema, values)))
        return
    if kinds is not None:
        try:
            schema = kinds.schema(values)
        except ConfigError as error:
            found += [((*path, *name), what) for name, what in map(_split, error.problems)]
            return
    if isinstance(node, ListConfig):
        node.append(OmegaConf.structured(schema))
        inner = node[-1]
    else:
        # Absent so far, or there with the defaults of another kind.
        if key not in node or OmegaConf.is_missing(node, key) or OmegaConf.get_type(node[key]) is not schema:
            node[key] = OmegaConf.structured(schema)
        inner = node[key]
    OmegaConf.set_readonly(inner, False)  # as the nodes of frozen dataclasses are
    _fill(inner, schema, values, path, text, found, kinds)


def _expected(schema: type, values: Any) -> str:
    return f"expected a section with some of {', '.join(field_names(schema))}; got {shown(values)}"


def _fill_chosen(
    node: DictConfig,
    key: str,
    choose: Choose,
    values: dict[str, Any],
    path: Keys,
    text: dict[Keys, str],
    found: Noted,
) -> None:
    """A field made by `section`: there even where the user sets nothing in it, with the defaults of its schema."""
    given = values.get(key)
    try:
        schema = choose(values, path[-2])
    except ConfigError as error:
        found += [((*path[:-1], *key), what) for key, what in map(_split, error.problems)]
        return
    if schema is None:
        if given is not None:
            found.append((path, "is not read here"))
        return
    node[key] = OmegaConf.structured(schema)
    OmegaConf.set_readonly(node[key], False)
    if given is not None:
        _fill(node[key], schema, given, path, text, found)


def _fill_value(
    node: DictConfig, key: str, hint: Any, value: Any, path: Keys, text: dict[Keys, str], found: Noted
) -> None:
    """A number, text, choice, list or dict of them. OmegaConf converts; what it would take silently is refused."""
    if hint is str and not isinstance(value, (str, list, dict)):
        value = text.get(path, value)  # `run=007` and `run=1e3` mean these words
    mistaken = (hint is bool and not isinstance(value, (bool, str))) or (hint is str and not isinstance(value, str))
    try:
        if mistaken or value is None:
            raise ValueError
        OmegaConf.update(node, key, value, merge=False)
    except (OmegaConfBaseException, ValueError):
        names = getattr(hint, "__members__", ())  # of an enum
        wanted = f"one of {', '.join(names)}" if names else hint.__name__ if type(hint) is type else str(hint)
        found.append((path, f"expected {wanted}, got {shown(value)}{'.' * bool(names)}{nearest(str(value), names)}"))


def _leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value of a tree of dataclasses, dicts and lists with its path; the containers too."""
    yield path, value
    children: Any = ()
    if dataclasses.is_dataclass(value):
        children = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    for key, child in children:
        yield from _leaves(child, (*path, str(key)))


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _own_problems(config: Any, path: Keys) -> Iterator[tuple[Keys, str]]:
    """What the `problems()` of every dataclass in the tree says, with the path of the setting it is about."""
    for inner, value in _leaves(config, path):
        if dataclasses.is_dataclass(value):
            problems = getattr(value, "problems", None)
            for line in problems() if problems else ():
                key, what = _split(line)
                yield (*inner, *key), what


def _split(line: str) -> tuple[Keys, str]:
    """'a.b: what' -> (('a', 'b'), 'what'); a line that does not begin with a key -> ((), line)."""
    key, colon, what = line.partition(": ")
    if colon and re.fullmatch(r"[\w.-]+", key):
        return tuple(key.split(".")), what
    return (), line
