"""Where a record's captions come from, for every source that reads files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, DataError

CAPTIONS = ("given", "label", "none")
CAPTION_CHOICES = ("longest", "middle", "first")

_LOOKED_AT = 32  # records tried when a source is built


@dataclass(frozen=True)
class CaptionRule:
    """Captions of a record from the fields that lie beside its media.

    Attributes:
        mode: "given": from the fields; "label": the class name is the caption; "none": records have no captions.
        fields: names read in turn, and all kept; each holds a text or a list of texts.
        constant: the one caption of every record; the mode is then not used.
        default: stands in for a record without a caption; "" makes such a record unusable.
    """

    mode: str = "given"
    fields: tuple[str, ...] = ("caption", "captions")
    constant: str = ""
    default: str = ""

    @property
    def reads_fields(self) -> bool:
        return self.mode == "given" and not self.constant

    def texts(self, fields: Mapping[str, object], label: str | None, origin: str) -> tuple[str, ...]:
        """The captions of one record. Raises DataError where one is needed and missing, or is not a text."""
        if self.constant:
            return (self.constant,)
        if self.mode == "none":
            return ()
        if self.mode == "label":
            found = clean(label, f"{origin}: label")
        else:
            found = tuple(
                text for name in self.fields for text in clean(fields.get(name), f"{origin}: caption field {name!r}")
            )
        if found:
            return found
        if self.default:
            return (self.default,)
        looked = "a label" if self.mode == "label" else f"one of the fields {', '.join(self.fields)}"
        raise DataError(
            f"{origin}: no caption; needed: {looked}, or `caption_default` for records without one, "
            "or `captions: none` in a run that needs none, such as `condition.kind: none` "
            f"(there are: {', '.join(sorted(map(str, fields))) or 'no fields'})"
        )


def choose_caption(captions: Sequence[str], choice: str) -> int:
    """The place of one of several captions, by a name of `CAPTION_CHOICES`; the earliest of those of one length."""
    if choice == "first":
        return 0
    lengths = [len(caption) for caption in captions]
    wanted = max(lengths) if choice == "longest" else sorted(lengths)[(len(lengths) - 1) // 2]
    return lengths.index(wanted)


def clean(value: object, origin: str) -> tuple[str, ...]:
    """The non-empty texts of a text, a list of texts, or None. Raises DataError for anything else."""
    if value is None:
        return ()
    texts = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{origin}: expected a text or a list of texts, got {type(text).__name__} {text!r:.60}")
    return tuple(stripped for text in texts if (stripped := " ".join(text.split())))


def parse_json(data: bytes, origin: str) -> dict[str, object]:
    """A JSON object. Raises DataError for damaged or other JSON."""
    try:
        fields = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{origin}: not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{origin}: expected a JSON object, got {type(fields).__name__}")
    return fields


def parse_lines(data: bytes, origin: str) -> list[str]:
    """One caption per line. Raises DataError for text that is not UTF-8."""
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: not UTF-8 text: {error}") from error


def read_sidecars(media: Path) -> dict[str, object]:
    """Fields of `name.json` beside `name.png`; the lines of `name.txt` become the field "caption".

    Empty where there is neither. Raises DataError for a sidecar that cannot be read.
    """
    fields: dict[str, object] = {}
    try:
        for path, parse in ((media.with_suffix(".json"), parse_json), (media.with_suffix(".txt"), parse_lines)):
            if path.is_file():
                parsed = parse(path.read_bytes(), str(path))
                fields |= parsed if isinstance(parsed, dict) else {"caption": parsed}
    except OSError as error:
        raise DataError(f"{media}: sidecar cannot be read: {error}") from error
    return fields


def refuse_unusable(source, what: str) -> None:
    """ConfigError where none of some records spread over a source can be read, with the first reason.

    A single bad record is set aside when training meets it; a source of which nothing can be read is a wrong setting.
    """
    first_error = None
    count = min(len(source), _LOOKED_AT)
    for turn in range(count):
        try:
            source.read(turn * len(source) // count)
        except DataError as error:
            first_error = first_error or error
        else:
            return
    raise ConfigError(f"none of {count} {what} that were tried can be used; the first: {first_error}")
