"""A row of a table (of Parquet, of MDS shards) as a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError, nearest
from modalities.base import Record
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.fields import class_name, column_of, json_list, lookup


def read_columns(names: Sequence[str], media: str, label: str, captions: CaptionRule, where: object) -> list[str]:
    """The columns of a table that `row_record` reads: media, class and captions.

    Args:
        names: of all columns.
        where: the table, for messages.

    Raises ConfigError for a missing one; of the captions' columns one is enough, and none where there is a default.
    """
    found = [column for name in captions.fields if (column := column_of(name, names))] if captions.reads_fields else []
    if captions.reads_fields and not found and not captions.default:
        guess = nearest(captions.fields[0], names) if captions.fields else ""
        raise ConfigError(
            f"caption_fields: {where} has none of the columns {', '.join(captions.fields)}; it has "
            f"{', '.join(names)}.{guess}"
        )
    if media not in names:  # no dots lead into it
        raise _no_column(media, names, where)
    outer = [existing_column(label, names, where)] if label else []
    return list(dict.fromkeys([media, *outer, *found]))


def existing_column(name: str, names: Sequence[str], where: object) -> str:
    """The column that `lookup` of a name reads. Raises ConfigError where there is none."""
    column = column_of(name, names)
    if column is None:
        raise _no_column(name, names, where)
    return column


def _no_column(name: str, names: Sequence[str], where: object) -> ConfigError:
    return ConfigError(f"column {name!r}: {where} has no such column; it has {', '.join(names)}.{nearest(name, names)}")


def row_record(row: dict[str, Any], media: str, label: str, captions: CaptionRule, key: str, origin: str) -> Record:
    """The record of a row.

    Args:
        row: column -> value.
        media: column of encoded bytes, or of structs {bytes, path} as Hugging Face datasets write them.
        label: column of the class, or "".
        captions: their fields are the other columns; a text may hold a list as JSON.

    Raises DataError for a row without media or without a caption where one is needed.
    """
    data, suffix = row.get(media), ""
    if isinstance(data, dict):
        suffix = Path(data.get("path") or "").suffix.lower()
        data = data.get("bytes")
    if not data:
        raise DataError(f"{origin}: column {media!r} holds no bytes")
    name = class_name(lookup(row, label)) if label else None
    fields = {column: json_list(value) for column, value in row.items() if column != media}
    return Record(key, origin, data, suffix, captions.texts(fields, name, origin), name)
