"""What lies beside a medium under its name: NAME.json, NAME.txt, NAME.caption and NAME.cls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from core.errors import DataError

# Each wins over those before it where they hold the same field. The first three hold captions.
SIDECARS = (".json", ".caption", ".txt", ".cls")
CAPTION_LINES = ("split", "join")


@dataclass
class Beside:
    """Fields of the sidecars of one medium.

    Attributes:
        fields: those of the JSON object; the lines of .txt, or else of .caption, as "caption"; the class as "cls".
        problem: why one of them could not be read; ignored where the others hold what is needed.
    """

    fields: dict[str, object] = field(default_factory=dict)
    problem: DataError | None = None


def parse_sidecars(found: Iterable[tuple[str, bytes, str]], lines: str = "split") -> Beside:
    """The fields of sidecars in the order of `SIDECARS`. Empty ones count as absent.

    Args:
        found: (suffix of `SIDECARS`, content, origin for messages) of each.
        lines: "split": every line of a text is a caption of its own; "join": all of them are one.
    """
    beside = Beside()
    for suffix, data, origin in found:
        if not data.strip():
            continue
        try:
            if suffix == ".json":
                beside.fields |= parse_json(data, origin)
            elif suffix == ".cls":
                beside.fields["cls"] = " ".join(parse_text(data, origin).split())
            else:
                text = parse_text(data, origin)
                if text.strip():
                    beside.fields["caption"] = text.splitlines() if lines == "split" else text
        except DataError as error:
            beside.problem = beside.problem or error
    return beside


def parse_json(data: bytes, origin: str) -> dict[str, object]:
    """A JSON object. Raises DataError for damaged or other JSON."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(fields).__name__}")
    return fields


def parse_text(data: bytes, origin: str) -> str:
    """Raises DataError for text that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: not UTF-8 text: {error}") from error
