"""Rows of Parquet files: encoded media, captions and classes in columns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.errors import ConfigError, DataError, nearest
from core.optional import need
from modalities.base import Record
from modalities.data.captions import CaptionRule, refuse_unusable
from modalities.data.order import Blocks
from modalities.data.rows import row_record
from modalities.data.selection import Selection, digest, stems

CACHE_BYTES = 256 * 2**20  # row groups kept by each process, where the order needs no more
WINDOW_BYTES = 2 * 2**30  # of row groups that the order may need at a time in each process
_MANY = 64  # files from which on a progress line is shown


@dataclass(frozen=True)
class _File:
    """What is known of one file.

    Attributes:
        sizes: (groups,) rows of each row group.
        taken: for each row group the rows that a selection takes, or None: all.
        largest: bytes that its largest row group takes in memory.
        labels: class names.
        damage: why the file cannot be read, which costs one record; "" if it can.
    """

    sizes: np.ndarray
    taken: list[np.ndarray] | None = None
    largest: int = 0
    labels: frozenset[str] = frozenset()
    damage: str = ""


class ParquetSource:
    """Random access to the rows of one or more Parquet files.

    A row is read with its whole row group. Each process keeps as many row groups as the order reads at a time, so
    media read fastest and in least memory from files written with small row groups (about 100 rows).

    Of several files one that is damaged gives one record that cannot be used, which says so when training meets it;
    a single one is refused.

    Args:
        paths: files, in order; all with the columns below.
        media: column of encoded bytes, or of structs {bytes, path} as Hugging Face datasets write them.
        label: column of class names or numbers; "" for none.
        captions, selection: their fields are columns; a column holds a text or a list of texts.
        shuffle_blocks: row groups that the order reads at a time.

    Raises ConfigError for a missing or unfit column (naming the columns there are), for a selection that leaves
    nothing, and for row groups too large to keep `shuffle_blocks` of them; DataError for a damaged file.
    """

    def __init__(
        self,
        paths: list[Path],
        media: str,
        label: str = "",
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
        shuffle_blocks: int = 16,
    ):
        self.paths, self.media, self.label, self.shuffle_blocks = paths, media, label, shuffle_blocks
        self._stems = stems(paths)
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        self._cache: OrderedDict[tuple[int, int], object] = OrderedDict()
        self.columns = [media] + ([label] if label else [])
        if self.captions.reads_fields:
            self.columns = list(dict.fromkeys(self.columns + self._caption_columns()))
        if self.captions.mode == "label" and not label and not self.captions.constant:
            raise ConfigError("captions: 'label' needs label_field, the column of the class names")
        found = self._open_all(selection)
        self._damage = {number: file.damage for number, file in enumerate(found) if file.damage}
        self._names = sorted({name for file in found for name in file.labels})
        # One entry for each row group of all files: where it lies, and its rows.
        self._file = np.concatenate([np.full(len(file.sizes), number) for number, file in enumerate(found)])
        self._group = np.concatenate([np.arange(len(file.sizes)) for file in found])
        sizes, self._rows = np.concatenate([file.sizes for file in found]), None
        total = int(sizes.sum())
        if any(file.taken is not None for file in found):
            whole = [np.zeros(1, np.int32)]  # of a damaged file
            taken = [rows for file in found for rows in (whole if file.taken is None else file.taken)]
            sizes, self._rows = np.array([len(rows) for rows in taken]), np.concatenate(taken)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        if not self._ends[-1]:
            raise ConfigError(f"path: {_several(paths)}: none of {total} rows is left by {selection.describe()}")
        self._check_memory(max(file.largest for file in found))
        refuse_unusable(self, f"rows of {_several(paths)}")

    def _caption_columns(self) -> list[str]:
        with _open(self.paths[0]) as file:
            names = file.schema_arrow.names
        found = [name for name in self.captions.fields if name in names]
        if not found and not self.captions.default:
            guess = nearest(self.captions.fields[0], names) if self.captions.fields else ""
            raise ConfigError(
                f"caption_fields: {self.paths[0]} has none of the columns {', '.join(self.captions.fields)}; "
                f"it has {', '.join(names)}.{guess}"
            )
        return found

    def _check_memory(self, largest: int) -> None:
        self._kept = min(self.shuffle_blocks, len(self._ends)) + 1
        if self._kept > 2 and self._kept * largest > WINDOW_BYTES:
            fit = max(1, WINDOW_BYTES // largest - 1)
            raise ConfigError(
                f"shuffle_blocks: {self.shuffle_blocks} row groups of up to {largest / 2**20:,.0f} MiB would be kept "
                f"by every worker; set shuffle_blocks={fit}, or write {_several(self.paths)} with smaller row groups"
            )

    def _open_all(self, selection: Selection) -> list[_File]:
        look = partial(self._look, selection=selection)
        if len(self.paths) == 1:
            return [look(self.paths[0])]
        progress = partial(tqdm, total=len(self.paths), unit="file", desc="opening", disable=len(self.paths) < _MANY)
        with ThreadPoolExecutor(8) as pool:  # waits for a file system more than it computes
            return list(progress(pool.map(partial(_or_damage, look), self.paths)))

    def _look(self, path: Path, selection: Selection) -> _File:
        """The row groups of one file, and the rows that are taken."""
        needed = list(dict.fromkeys((*selection.fields, *([self.label] if self.label else []))))
        with _open(path) as file:
            names = file.schema_arrow.names
            for name in (*self.columns, *needed):
                if name not in names:
                    raise ConfigError(
                        f"column {name!r}: {path} has no such column; it has {', '.join(names)}.{nearest(name, names)}"
                    )
            self._check_media(file.schema_arrow.field(self.media).type, path)
            sizes, largest = _row_groups(file, self.columns)
            filtered = bool(selection.fields) or selection.split != "all"
            taken, labels, first = [], set(), 0
            for group, size in enumerate(sizes.tolist() if needed or filtered else []):
                table = file.read_row_group(group, columns=needed, use_threads=False).to_pydict() if needed else {}
                rows = range(size)
                if filtered:
                    keys = (f"{path.name}:{first + row}" for row in rows)
                    fields = ({name: table[name][row] for name in needed} for row in rows)
                    rows = [row for row, one, key in zip(rows, fields, keys, strict=True) if selection.takes(one, key)]
                    taken.append(np.array(rows, dtype=np.int32))
                if self.label:
                    labels.update(str(table[self.label][row]) for row in rows if table[self.label][row] is not None)
                first += size
        return _File(sizes, taken if filtered else None, largest, frozenset(labels))

    def _check_media(self, kind, path: Path) -> None:
        import pyarrow as pa

        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
            raise ConfigError(
                f"media_field: column {self.media!r} of {path} holds {kind}, encoded bytes or structs with a field "
                "'bytes' are needed"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self) -> Blocks:
        return Blocks(np.diff(self._ends, prepend=0), self.shuffle_blocks)

    def read(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise DataError(f"{_several(self.paths)}: record {index} of {len(self)}")
        block = int(np.searchsorted(self._ends, index, side="right"))
        number, group = int(self._file[block]), int(self._group[block])
        if number in self._damage:
            raise DataError(self._damage[number])
        row = int(self._rows[index]) if self._rows is not None else index - int(self._ends[block - 1] if block else 0)
        key = f"{self._stems[number]}:{group}:{row}"
        origin = f"{self.paths[number]} row group {group} row {row}"
        table = self._row_group(number, group)
        try:
            fields = {name: table.column(name)[row].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            raise DataError(f"{origin}: a text column is not UTF-8: {error}") from error
        return row_record(fields, self.media, self.label, self.captions, key, origin)

    def _row_group(self, number: int, group: int):
        place = (number, group)
        if place not in self._cache:
            with _open(self.paths[number]) as file:
                # One thread: the thread pool of a parent process does not survive a fork into a loader's worker.
                self._cache[place] = file.read_row_group(group, columns=self.columns, use_threads=False)
            while len(self._cache) > self._kept and sum(table.nbytes for table in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(place)
        return self._cache[place]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": OrderedDict()}

    def labels(self) -> list[str]:
        return self._names

    def fingerprint(self) -> str:
        files = (f"{path.name}:{path.stat().st_size}" for path in self.paths)
        taken = (digest(str(self._ends.tolist())), "" if self._rows is None else digest(self._rows.tobytes().hex()))
        return digest("parquet", "2", *files, *self.columns, *taken)


def _row_groups(file, columns: list[str]) -> tuple[np.ndarray, int]:
    """(groups,) rows of each row group, and the bytes that the columns of the largest take in memory."""
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    leaves = [leaf for leaf in range(len(file.schema)) if file.schema.column(leaf).path.split(".")[0] in columns]
    taken = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    return np.array([group.num_rows for group in groups], dtype=np.int64), max(taken, default=0)


def _or_damage(look, path: Path) -> _File:
    """A damaged file among others costs one record, and training says which."""
    try:
        return look(path)
    except DataError as error:
        return _File(np.ones(1, np.int64), damage=str(error))


def _several(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


@contextmanager
def _open(path: Path) -> Iterator:
    """An open ParquetFile. Whatever is wrong with the file, in opening or in use, becomes a DataError."""
    parquet = need("pyarrow.parquet", "kind: parquet", "All other sources work")
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged: {error}") from error
