"""Rows of Parquet files: encoded media, captions and classes in columns.

Why no library's reader, for single rows in the order of training (200 row groups of 100 rows of 20 kB, pyarrow 26, rows
per second of CPU): this one keeps the row groups in use and reads 6,200 in 150 MiB. pyarrow's dataset keeps none: its
`take` scans the file for every row (1.4), its fragments of row groups read again (200). Hugging Face datasets reads
20,000, but first copies all files to disk, uncompressed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.optional import need
from core.progress import ProgressBar
from modalities.base import Record
from modalities.data.order import Blocks, place_in_blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import CaptionRule, refuse_unusable
from modalities.data.sources.config import SelectableConfig, shuffle_problems
from modalities.data.sources.fields import class_name, column_of, lookup, parsed_json
from modalities.data.sources.rows import existing_column, read_columns, row_record
from modalities.data.sources.selection import Selection, digest, locate, several, stems

CACHE_BYTES = 256 * 2**20  # row groups kept by each process, where the order needs no more
WINDOW_BYTES = 2 * 2**30  # of row groups that the order may need at a time in each process
_MANY = 64  # files from which on a progress line is shown


@dataclass(frozen=True, kw_only=True)
class ParquetConfig(SelectableConfig):
    """Rows of Parquet files, at `path`: a file, a folder of them, or wildcards (`parts/*.parquet`).

    Attributes:
        media_field: column of the encoded media; "" is the name of the modality.
        shuffle_blocks: row groups that are read at a time; records are shuffled within about that many, which also take
            turns in another order each epoch.
    """

    kind: str = "parquet"
    media_field: str = ""
    shuffle_blocks: int = 16

    def problems(self) -> list[str]:
        return super().problems() + shuffle_problems(self.shuffle_blocks)

    def build(self, modalities: tuple[str, ...], root: Path) -> ParquetSource:
        paths, account = locate(self.path, root, ".parquet")
        return ParquetSource(
            paths,
            self.media_field or modalities[0],
            self.label_field,
            self.caption_rule(),
            self.selection(),
            self.shuffle_blocks,
            account,
        )

    def layout(self, modality: str) -> str:
        return f"Parquet files with the encoded media in the column {self.media_field or modality!r}"


@dataclass(frozen=True)
class _File:
    """What is known of one file.

    Attributes:
        sizes: (groups,) rows of each row group.
        taken: for each row group the rows that a selection takes, or None: all.
        largest: bytes that its largest row group takes in memory.
        labels: class names.
        columns, json: of those wanted, the ones that it has; and which columns hold JSON.
        damage: why the file cannot be read, which costs one record; "" if it can.
        unfit: the same, of an audio file without the columns that are needed.
    """

    sizes: np.ndarray
    taken: list[np.ndarray] | None = None
    largest: int = 0
    labels: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
    json: frozenset[str] = frozenset()
    damage: str = ""
    unfit: bool = False


class ParquetSource:
    """Random access to the rows of one or more Parquet files.

    A row is read with its whole row group. Each process keeps as many row groups as the order reads at a time, so
    media read fastest and in least memory from files written with small row groups (about 100 rows).

    Of several files one that is damaged, or lacks the columns of the others, gives one record that cannot be used,
    which says so when training meets it; a single one is refused.

    Args:
        paths: files, in order.
        media: column of encoded bytes, or of structs {bytes, path} as Hugging Face datasets write them.
        label: column of class names or numbers; "" for none.
        captions, selection: their fields are columns; a column holds a text or a list of texts, also as JSON. Dotted
            names of fields and label lead into structs, lists and JSON, see `lookup`.
        shuffle_blocks: row groups that the order reads at a time.
        account: what was left out beside the files.

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
        account: Account | None = None,
    ):
        self.paths, self.media, self.label, self.shuffle_blocks = paths, media, label, shuffle_blocks
        self._stems = stems(paths)
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        self._cache: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self.captions.check_label(label, "the column of the class names")
        found = self._open_all(selection)
        self._damage = {number: file.damage for number, file in enumerate(found) if file.damage}
        self._names = sorted({name for file in found for name in file.labels})
        self._present = [(file.columns, file.json) for file in found]
        self.columns = _in_order([name for file in found for name in file.columns], media, label, self.captions)
        # One entry for each row group of all files: where it lies, and its rows.
        self._file = np.concatenate([np.full(len(file.sizes), number) for number, file in enumerate(found)])
        self._group = np.concatenate([np.arange(len(file.sizes)) for file in found])
        sizes, self._rows = np.concatenate([file.sizes for file in found]), None
        total = int(sizes.sum())
        if not total:
            raise ConfigError(f"path: {several(paths)}: no rows")
        if any(file.taken is not None for file in found):
            whole = [np.zeros(1, np.int32)]  # of a damaged file
            taken = [rows for file in found for rows in (whole if file.taken is None else file.taken)]
            sizes, self._rows = np.array([len(rows) for rows in taken]), np.concatenate(taken)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        if not self._ends[-1]:
            raise ConfigError(f"path: {several(paths)}: none of {total} rows is left by {selection.describe()}")
        self._check_memory(max(file.largest for file in found))
        self._account = account or Account()
        self._account.leave(f"row| (outside {selection.describe()})", count=total - int(self._ends[-1]))
        for number, file in enumerate(found):
            if file.damage or not file.sizes.sum():
                what = ("unfit" if file.unfit else "damaged") if file.damage else "empty"
                self._account.leave(f"{what} file|", paths[number].name)
        refuse_unusable(self, f"rows of {several(paths)}")

    def _check_memory(self, largest: int) -> None:
        self._kept = min(self.shuffle_blocks, len(self._ends)) + 1
        if self._kept > 2 and self._kept * largest > WINDOW_BYTES:
            fit = max(1, WINDOW_BYTES // largest - 1)
            raise ConfigError(
                f"shuffle_blocks: {self.shuffle_blocks} row groups of up to {largest / 2**20:,.0f} MiB would be kept "
                f"by every worker; set shuffle_blocks={fit}, or write {several(self.paths)} with smaller row groups"
            )

    def _open_all(self, selection: Selection) -> list[_File]:
        look = partial(self._look, selection=selection)
        if len(self.paths) == 1:
            return [look(self.paths[0])]
        hidden = len(self.paths) < _MANY
        progress = partial(ProgressBar, total=len(self.paths), unit="file", desc="opening", disable=hidden)
        with ThreadPoolExecutor(8) as pool:  # waits for a file system more than it computes
            found = list(progress(pool.map(partial(_or_damage, look), self.paths)))
        if all(file.damage for file in found):  # one that is audio says more of what is wrong
            look(self.paths[next((number for number, file in enumerate(found) if file.unfit), 0)])
        return found

    def _look(self, path: Path, selection: Selection) -> _File:
        """The row groups of one file, and the rows that are taken."""
        wanted: list[str] = [*selection.fields, *([self.label] if self.label else [])]
        needed = list(dict.fromkeys(wanted))
        with _open(path) as file:
            names = file.schema_arrow.names
            columns = self._columns(names, needed, path)
            self._check_media(file.schema_arrow.field(self.media).type, path)
            sizes, largest = _row_groups(file, columns)
            json = _json_columns(file)
            found = (column_of(name, names) for name in needed)  # all there, `_columns` has looked
            outer = list(dict.fromkeys(column for column in found if column is not None))
            filtered = bool(selection.fields) or selection.split != "all"
            taken, labels, first = [], set(), 0
            for group, size in enumerate(sizes.tolist() if needed or filtered else []):
                table = file.read_row_group(group, columns=outer, use_threads=False).to_pydict() if needed else {}
                rows = range(size)
                if filtered:
                    keys = (f"{path.name}:{first + row}" for row in rows)
                    fields = ({name: _value(table[name][row], name in json) for name in outer} for row in rows)
                    rows = [row for row, one, key in zip(rows, fields, keys, strict=True) if selection.takes(one, key)]
                    taken.append(np.array(rows, dtype=np.int32))
                if self.label:
                    column = column_of(self.label, names) or self.label
                    values = ({column: _value(table[column][row], column in json)} for row in rows)
                    found = (class_name(lookup(value, self.label)) for value in values)
                    labels.update(name for name in found if name is not None)
                first += size
        return _File(sizes, taken if filtered else None, largest, frozenset(labels), tuple(columns), frozenset(json))

    def _columns(self, names: list[str], needed: list[str], path: Path) -> list[str]:
        """The columns to read of a file. Raises ConfigError for one that is missing, or there twice."""
        read = read_columns(names, self.media, self.label, self.captions, path)
        count = Counter(names)
        for column in (*read, *(existing_column(name, names, path) for name in needed)):
            if count[column] > 1:
                raise ConfigError(f"column {column!r}: {path} has {count[column]} columns of that name; rename them")
        return read

    def _check_media(self, kind, path: Path) -> None:
        import pyarrow as pa

        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")  # the last is new in 16
        if not any(getattr(pa.types, test)(kind) for test in tests if hasattr(pa.types, test)):
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
            raise DataError(f"{several(self.paths)}: record {index} of {len(self)}")
        block, place = place_in_blocks(self._ends, index)
        number, group = int(self._file[block]), int(self._group[block])
        if number in self._damage:
            raise DataError(self._damage[number])
        row = place if self._rows is None else int(self._rows[index])
        key = f"{self._stems[number]}:{group}:{row}"
        origin = f"{self.paths[number]} row group {group} row {row}"
        table, (columns, json) = self._row_group(number, group), self._present[number]
        fields: dict[str, object] = {}
        for name in columns:
            try:
                fields[name] = _value(table.column(name)[row].as_py(), name in json)
            except UnicodeDecodeError as error:
                raise DataError(f"{origin}: the text in column {name!r} is not UTF-8: {error}") from error
            except (ValueError, OverflowError) as error:  # such as a time that Python cannot hold
                raise DataError(f"{origin}: column {name!r} cannot be read: {error}") from error
        return row_record(fields, self.media, self.label, self.captions, key, origin)

    def _row_group(self, number: int, group: int):
        place = (number, group)
        if place not in self._cache:
            with _open(self.paths[number]) as file:
                # One thread: the thread pool of a parent process does not survive a fork into a loader's worker.
                self._cache[place] = file.read_row_group(
                    group, columns=list(self._present[number][0]), use_threads=False
                )
            while len(self._cache) > self._kept and sum(table.nbytes for table in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(place)
        return self._cache[place]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": OrderedDict()}

    def labels(self) -> list[str]:
        return self._names

    def account(self) -> Account:
        return self._account

    def fingerprint(self) -> str:
        files = (f"{path.name}:{path.stat().st_size}" for path in self.paths)
        taken = (digest(str(self._ends.tolist())), "" if self._rows is None else digest(self._rows.tobytes().hex()))
        return digest("parquet", "2", *files, *self.columns, *taken)


def _row_groups(file, columns: list[str]) -> tuple[np.ndarray, int]:
    """(groups,) rows of each row group, and the bytes that the columns of the largest take in memory."""
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    paths = [file.schema.column(leaf).path for leaf in range(len(file.schema))]
    leaves = [leaf for leaf, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]
    taken = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    return np.array([group.num_rows for group in groups], dtype=np.int64), max(taken, default=0)


def _json_columns(file) -> set[str]:
    """Whose texts, or lists of texts, are JSON by the schema of the file."""
    columns = (file.schema.column(leaf) for leaf in range(len(file.schema)))
    paths = (column.path for column in columns if column.logical_type.type == "JSON")
    return {path.removesuffix(".element").removesuffix(".list") for path in paths}


def _value(value: object, json: bool) -> object:
    """The value in a column, whose texts may be JSON."""
    if json and isinstance(value, list):
        return [_value(item, json) for item in value]
    return parsed_json(value, value) if json and isinstance(value, str) else value


def _in_order(found: list[str], media: str, label: str, captions: CaptionRule) -> list[str]:
    """The columns that are read of all files, in the order of the settings."""
    wanted = [media, *([label] if label else []), *(captions.fields if captions.reads_fields else ())]
    return list(dict.fromkeys(column for name in wanted if (column := column_of(name, found))))


def _or_damage(look, path: Path) -> _File:
    """A damaged or unfit file among others costs one record, and training says which."""
    try:
        return look(path)
    except (DataError, ConfigError) as error:
        return _File(np.ones(1, np.int64), damage=str(error), unfit=isinstance(error, ConfigError))


@contextmanager
def _open(path: Path) -> Iterator:
    """An open ParquetFile. Whatever is wrong with the file, in opening or in use, becomes a DataError."""
    parquet = need("pyarrow.parquet", "kind: parquet", "All other sources work")
    import pyarrow as pa

    try:
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # also values that Python cannot hold
        raise DataError(f"{path}: not a Parquet file, or damaged: {error}") from error
