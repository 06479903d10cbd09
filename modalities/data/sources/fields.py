"""Values in what lies beside media: columns of a row, or members of a JSON object, by plain or dotted names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, cast


def lookup(fields: Mapping[str, object], name: str) -> object:
    """The value of a field; None where there is none.

    A name is first taken as it is. Otherwise its dots lead inwards: `caption.en` is the member "en" of the field
    "caption", `messages.0.content` the member "content" of the first item of a list, and `messages.content` that of
    every item that has one, as one list. A text that holds JSON is entered as well.
    """
    if name in fields:
        return fields[name]
    parts = name.split(".")
    for place in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:place])
        if outer in fields:
            return _inside(fields[outer], parts[place:])
    return None


def column_of(name: str, columns: Iterable[str]) -> str | None:
    """The column that `lookup` of a name reads, or None."""
    columns, parts = set(columns), name.split(".")
    outer = (".".join(parts[:place]) for place in range(len(parts), 0, -1))
    return next((candidate for candidate in outer if candidate in columns), None)


def _inside(value: object, parts: list[str]) -> object:
    value = opened(value)
    if isinstance(value, Mapping):
        return lookup(value, ".".join(parts))
    if not isinstance(value, list | tuple):
        return None
    if parts[0].isdecimal():
        place = int(parts[0])
        item = value[place] if place < len(value) else None
        return item if len(parts) == 1 else _inside(item, parts[1:])
    found: list[object] = []
    for item in value:
        inner = _inside(item, parts)
        found += inner if isinstance(inner, list) else [inner]
    return [item for item in found if not is_missing(item)]


def opened(value: Any) -> object:
    """The object or list in a text of JSON, the mapping in pairs (a map of Parquet), anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return parsed_json(value, value)
    if isinstance(value, list) and value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        return dict(value)
    return value


def json_list(value: Any) -> object:
    """The list in a text such as '["a cat", "a gray cat"]'; anything else as it is."""
    if isinstance(value, str) and value.startswith("["):
        parsed = parsed_json(value, value)
        # A caption may begin with a bracket, and a list of numbers is none of captions.
        return value if parsed and all(isinstance(item, Real) for item in parsed) else parsed
    return value


def parsed_json(text: str, otherwise: Any) -> Any:
    """What a text of JSON holds, or something else where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def is_missing(value: object) -> bool:
    """None, and NaN, which pandas writes for it."""
    return value is None or (isinstance(value, Real) and bool(value != value))


def class_name(value: object) -> str | None:
    """The class that a value names; None where it is missing.

    Whole numbers are written without a point: pandas makes 0.0 and 1.0 of a column of integers with a gap.
    """
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Real) and not isinstance(value, Integral) and value == value // 1:
        return str(int(cast(float, value)))  # numbers.Real does not say that it has __int__
    return str(value)
