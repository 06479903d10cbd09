"""The index.json of MDS shards, checked and kept small."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import numpy as np

from core.errors import ConfigError, DataError
from modalities.data.sources.selection import digest

_VARYING = ("samples", "raw_data", "zip_data")  # from shard to shard


class MdsIndex:
    """Sample counts, files and columns of all shards.

    What differs from shard to shard stays text until it is asked for: the objects of 200,000 shards would take ten
    times the memory, in every worker.

    Args:
        data: the text of index.json.
        where: its path or URL, for messages.

    Attributes:
        ends: (shards,) int64, samples up to the end of each shard.
        columns: name -> encoding such as "bytes", "str" or "ndarray:float16".
        largest: bytes that the largest shard takes while it is prepared, with its compressed form.

    Raises DataError for an index that is damaged or of another format, ConfigError for columns of pickled objects.
    """

    def __init__(self, data: bytes, where: str):
        try:
            index = json.loads(data)
            version, shards = index["version"], index["shards"]
            if version != 2 or not shards or {shard["format"] for shard in shards} != {"mds"}:
                kinds = sorted({str(shard["format"]) for shard in shards})
                raise DataError(
                    f"{where}: version {version} with {len(shards)} shards of format {', '.join(kinds)}; needed: "
                    "version 2 and shards of format mds"
                )
            counts, pieces, kinds, kind_of = [], [], {}, []
            for shard in shards:
                counts.append(_checked_count(shard, where))
                pieces.append(json.dumps({name: shard[name] for name in _VARYING}).encode())
                kind = json.dumps({name: value for name, value in shard.items() if name not in _VARYING})
                kind_of.append(kinds.setdefault(kind, len(kinds)))
            self._kinds = [json.loads(kind) for kind in kinds]
            columns = [dict(zip(k["column_names"], k["column_encodings"], strict=True)) for k in self._kinds]
            self.largest = max(shard_bytes(shard) for shard in shards)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: damaged: {type(error).__name__}: {error}") from error
        if any(other != columns[0] for other in columns):
            raise DataError(f"{where}: the shards have different columns: {columns[:3]}")
        if sum(counts) == 0:
            raise DataError(f"{where}: no samples in {len(counts)} shards")
        self.columns: dict[str, str] = columns[0]
        for name, encoding in self.columns.items():
            if encoding == "pkl":
                raise ConfigError(f"{where}: column {name!r} holds pickled objects; reading them could run any code")
        self.ends = np.cumsum(counts, dtype=np.int64)
        self._kind_of = np.array(kind_of, dtype=np.int32)
        self._text = b"".join(pieces)
        self._stops = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self.digest = digest("mds", *kinds, self._text.decode())

    def shard(self, number: int) -> dict:
        """The entry of one shard, as index.json has it."""
        start = int(self._stops[number - 1]) if number else 0
        return self._kinds[self._kind_of[number]] | json.loads(self._text[start : int(self._stops[number])])


def shard_bytes(shard: dict) -> int:
    """Bytes on the disk while a shard is prepared: the raw file, and the compressed one if there is one."""
    return sum(shard[part]["bytes"] for part in ("raw_data", "zip_data") if shard[part])


def _checked_count(shard: dict, where: str) -> int:
    for part in ("raw_data", "zip_data"):
        if shard[part] is None and part == "zip_data":
            continue
        name = PurePosixPath(shard[part]["basename"])
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise DataError(f"{where}: names the file {str(name)!r}, which is not inside the folder")
        if int(shard[part]["bytes"]) < 0 or not isinstance(shard[part]["hashes"], dict):
            raise DataError(f"{where}: {name}: {shard[part]['bytes']} bytes, hashes {shard[part]['hashes']}")
    if int(shard["samples"]) < 0:
        raise DataError(f"{where}: {shard['raw_data']['basename']}: {shard['samples']} samples")
    return int(shard["samples"])
