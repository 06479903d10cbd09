"""A row of a table (of Parquet, of MDS shards) as a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import DataError
from modalities.base import Record
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.fields import class_name, json_list, lookup


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
