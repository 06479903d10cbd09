"""Settings that follow from others where the user leaves them out: of held-out records, and of runs without captions.

- A `val` section takes from the stream's `data` what it does not set: kind, captions, fields, filters, and what
  an synthetic source draws. It does not take what names the records themselves (`NAMING`), nor what its own kind does
  not have. Where it sets any of `CAPTIONS`, it takes none of them.
- With `split` but no `path`, it is the other side of `data`, and takes the place and the hold-out too.
- Of a concat it takes what all parts agree on; a part of a held-out concat takes from the part of the same name.
- With `condition.kind: none`, `captions` is none.
- With `trunk.kind: flux2`, the text encoder pads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.kinds import field_names
from core.training.settings import Keys
from modalities.data.sources.build import SOURCES

PLACE = ("path", "cache", "cache_limit", "holdout", "holdout_key")
NAMING = (*PLACE, "split", "repeat", "count", "seed", "parts")
CAPTIONS = ("captions", "caption_fields", "caption")
DEFAULT_KIND = next(iter(SOURCES))

Implied = tuple[Keys, Any, Keys]  # a setting, its value, and the setting that it follows from


def val_settings(values: dict) -> Iterator[Implied]:
    """What held-out sections take from `data`, of nested plain settings; wrong ones are left for others to refuse."""
    for name, stream in _section(values, "streams").items():
        at = ("streams", name)
        if isinstance(stream, dict):
            yield from inherited(stream.get("data"), stream.get("val"), (*at, "data"), (*at, "val"))


def without_captions(values: dict) -> Iterator[Implied]:
    """`captions: none` for the sources of a run with `condition.kind: none`."""
    if _section(values, "condition").get("kind") != "none":
        return
    for name, stream in _section(values, "streams").items():
        for part in ("data", "val"):
            if isinstance(stream, dict):
                yield from _no_captions(stream.get(part), ("streams", name, part))


def padded_text(values: dict) -> Iterator[Implied]:
    """`condition.encoder.pad` for the trunk of FLUX.2, which attends to the features of padding."""
    encoder = _section(values, "condition").get("encoder")
    if _section(values, "trunk").get("kind") == "flux2" and isinstance(encoder, dict) and encoder.get("pad") is None:
        yield ("condition", "encoder", "pad"), True, ("trunk", "kind")


def inherited(data: Any, val: Any, source: Keys, target: Keys, part: bool = False) -> Iterator[Implied]:
    """What a held-out section takes from the section at `source`; `part` of a concat or not."""
    if not isinstance(data, dict) or not isinstance(val, dict):
        return
    known = _common(data, source)
    default = (DEFAULT_KIND, source)
    kind = val.get("kind", known.get("kind", default)[0])
    if not isinstance(kind, str):
        return
    has = settings_of(kind)
    other_side = "split" in val and not {"path", "parts"} & set(val)
    own = set(NAMING) - (set(PLACE) if other_side else set())
    own |= set(CAPTIONS) if set(CAPTIONS) & set(val) else set()
    own |= {"caption_choice"} if part else set()
    for name, (value, place) in known.items():
        if name not in val and name not in own and name in has:
            yield (*target, name), value, place
    for name, one in _section(val, "parts").items():
        same = _section(data, "parts").get(name)
        base, place = (same, (*source, "parts", name)) if isinstance(same, dict) else (data, source)
        yield from inherited(base, one, place, (*target, "parts", name), part=True)


def _common(data: dict, at: Keys) -> dict[str, tuple[Any, Keys]]:
    """Setting -> (value, where it stands); of a concat those of all parts, where they agree."""
    found = {name: (value, (*at, name)) for name, value in data.items()}
    named = _section(data, "parts").items()
    parts = [_common(part, (*at, "parts", name)) for name, part in named if isinstance(part, dict)]
    if not parts:
        return found
    agreed = {
        name: (value, place)
        for name, (value, place) in parts[0].items()
        if all(name in part and part[name][0] == value for part in parts)
    }
    return agreed | {name: entry for name, entry in found.items() if name == "caption_choice"}


def _no_captions(source: Any, at: Keys) -> Iterator[Implied]:
    if not isinstance(source, dict):
        return
    kind = source.get("kind", DEFAULT_KIND)
    if isinstance(kind, str) and "captions" in settings_of(kind) and "captions" not in source:
        yield (*at, "captions"), "none", ("condition", "kind")
    for name, part in _section(source, "parts").items():
        yield from _no_captions(part, (*at, "parts", name))


def settings_of(kind: str) -> list[str]:
    """Names of the settings of a kind of source; none for an unknown kind."""
    return field_names(SOURCES[kind]) if kind in SOURCES else []


def _section(values: dict, name: str) -> dict:
    found = values.get(name)
    return found if isinstance(found, dict) else {}
