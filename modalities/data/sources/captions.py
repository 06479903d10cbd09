"""Where a record's captions come from, for every source that reads files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import ConfigError, DataError
from modalities.data.sources.fields import is_missing, lookup, opened

CAPTIONS = ("given", "label", "none")
CAPTION_CHOICES = ("longest", "middle", "first")

_LOOKED_AT = 32  # records tried when a source is built


@dataclass(frozen=True)
class CaptionRule:
    """Captions of a record from the fields that lie beside its media.

    Attributes:
        mode: "given": from the fields; "label": the class name is the caption; "none": records have no captions.
        fields: names read in turn, and all kept; each holds a text or a list of texts. Dots lead inwards, see `lookup`.
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

    def check_label(self, label: str, what: str) -> None:
        """Raise ConfigError where class names are the captions and `label` names no field of them, which is `what`."""
        if self.mode == "label" and not label and not self.constant:
            raise ConfigError(f"captions: 'label' needs label_field, {what}")

    def texts(
        self, fields: Mapping[str, object], label: str | None, origin: str, problem: DataError | None = None
    ) -> tuple[str, ...]:
        """The captions of one record.

        Args:
            problem: why some of the fields could not be read; raised where the others hold no caption.

        Raises DataError where one is needed and missing, or where there is something and no text.
        """
        if self.constant:
            return (self.constant,)
        if self.mode == "none":
            return ()
        found: list[str] = []
        unfit: DataError | None = None
        if self.mode == "label":
            values = {"label": label}
        else:
            values = {name: lookup(fields, name) for name in self.fields}
        for name, value in values.items():
            try:
                found += clean(value, origin, name)
            except DataError as error:
                unfit = unfit or error  # ignored where another one fits
        if found:
            return tuple(found)
        if reason := problem or unfit:
            raise reason
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


def clean(value: object, origin: str, name: str) -> tuple[str, ...]:
    """The non-empty texts of a text, a list of texts, or None; items that are missing or no text are left out.

    Args:
        origin, name: of the record and of the field, for the message.

    Raises DataError where there is something, and no text.
    """
    values = value if isinstance(value, list | tuple) else [value]
    given = [item for item in values if not is_missing(item)]
    texts = [item for item in given if isinstance(item, str)]
    if given and not texts:
        seen = f"{type(given[0]).__name__} {given[0]!r:.60}{_named_inside(value, name)}"
        raise DataError(f"{origin}: caption field {name!r}: expected a text or a list of texts, got {seen}")
    return tuple(stripped for text in texts if (stripped := " ".join(text.split())))


def _named_inside(value: object, name: str) -> str:
    """How to name a text inside a value of several fields."""
    value, place = opened(value), ""
    if isinstance(value, list | tuple) and value:
        value, place = opened(value[0]), ".0"
    if not isinstance(value, Mapping) or not value:
        return ""
    names = ", ".join(str(key) for key in value)
    text = next((key for key, inner in value.items() if isinstance(inner, str)), next(iter(value)))
    return f"; it holds the fields {names}: name one of them, such as {name}{place}.{text}"


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
