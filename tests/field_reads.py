"""Which settings does a program read? A setting that nothing reads is a promise that nothing keeps.

    unread = unread_fields(config, lambda config: train_and_generate(config))
    assert unread == set()

Reads are seen by the `__getattribute__` of the dataclasses themselves while the action runs, so the program gets the
very same objects. Not counted: reads inside a `problems` method and reads by dataclasses, copy, pickle, omegaconf and
this package's configuration printer, which touch every field without using it. Sections (fields that hold dataclasses,
or lists or dicts of them) count through their leaves. Only this process is watched: run data workers in it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

BLIND_MODULES = ("dataclasses", "copy", "pickle", "omegaconf", "core.training.config", "tests.field_reads")


def unread_fields(config: Any, action: Callable[[Any], Any]) -> set[str]:
    """Dotted names of the leaves of `config`, a tree of dataclasses, that `action(config)` does not read."""
    paths = {id(section): path for path, section in _sections(config, "")}
    leaves = leaf_fields(config)
    read: set[str] = set()
    read_of_copies: set[tuple[type, str]] = set()  # dataclasses.replace and the like make sections we cannot place

    def watch(cls: type) -> None:
        names = {field.name for field in dataclasses.fields(cls)}
        plain = cls.__getattribute__

        def recording(section: Any, name: str) -> Any:
            if name in names and not _blind(sys._getframe(1)):
                if id(section) in paths:
                    read.add(f"{paths[id(section)]}{name}")
                else:
                    read_of_copies.add((cls, name))
            return plain(section, name)

        cls.__getattribute__ = recording

    classes = {type(section) for _, section in _sections(config, "")}
    owned = {cls: cls.__dict__.get("__getattribute__") for cls in classes}
    try:
        for cls in classes:
            watch(cls)
        action(config)
    finally:
        for cls, original in owned.items():
            if original is None:
                del cls.__getattribute__
            else:
                cls.__getattribute__ = original
    for path, section in _sections(config, ""):
        read |= {f"{path}{name}" for cls, name in read_of_copies if cls is type(section)}
    return leaves - read


def leaf_fields(config: Any) -> set[str]:
    """Dotted names of all fields of a tree of dataclasses that hold no section; an absent section (None) is a leaf."""
    return {
        f"{path}{field.name}"
        for path, section in _sections(config, "")
        for field in dataclasses.fields(section)
        if not list(_sections(getattr(section, field.name), ""))
    }


def _blind(frame: FrameType | None) -> bool:
    """Whether a read comes from code that touches fields without using them."""
    while frame is not None:
        if frame.f_code.co_name == "problems" or frame.f_globals.get("__name__", "").startswith(BLIND_MODULES):
            return frame.f_code.co_name != "unread_fields"
        frame = frame.f_back
    return False


def _sections(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted prefix, dataclass instance) of a tree, through lists and dicts too."""
    if dataclasses.is_dataclass(value):
        yield path, value
        for field in dataclasses.fields(value):
            yield from _sections(getattr(value, field.name), f"{path}{field.name}.")
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _sections(child, f"{path}{key}.")
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from _sections(child, f"{path}{index}.")
