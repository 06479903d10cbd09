"""Rows of Parquet files: encoded media, captions and classes in columns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ConfigError, DataError, nearest
from modalities.base import Record
from modalities.data.captions import CaptionRule, refuse_unusable
from modalities.data.selection import Selection, digest, stems

CACHE_BYTES = 256 * 2**20  # row groups kept by each process, since a random order visits all of them in turn


class ParquetSource:
    """Random access to the rows of one or more Parquet files.

    A row is read with its whole row group; row groups stay in memory up to CACHE_BYTES. Media larger than that in
    total read fastest from files written with small row groups (about 100 rows).

    Args:
        paths: files, in order; all with the columns below.
        media: column of encoded bytes, or of structs {bytes, path} as Hugging Face datasets write them.
        label: column of class names or numbers; "" for none.
        captions, selection: their fields are columns; a column holds a text or a list of texts.

    Raises ConfigError for a missing or unfit column (naming the columns there are) and for a selection that leaves
    nothing; DataError for a damaged file.
    """

    def __init__(
        self,
        paths: list[Path],
        media: str,
        label: str = "",
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
    ):
        self.paths, self.media, self.label = paths, media, label
        self._stems = stems(paths)
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        self._cache: OrderedDict[tuple[int, int], object] = OrderedDict()
        self.columns = [media] + ([label] if label else [])
        if self.captions.reads_fields:
            self.columns = list(dict.fromkeys(self.columns + self._caption_columns()))
        if self.captions.mode == "label" and not label and not self.captions.constant:
            raise ConfigError("captions: 'label' needs label_field, the column of the class names")
        self.rows: list[tuple[int, int, int]] = []  # (file, row group, row in it)
        self._names: set[str] = set()
        total = sum(self._index(number, selection) for number in range(len(paths)))
        if not self.rows:
            raise ConfigError(f"path: {_several(paths)}: none of {total} rows is left by {selection.describe()}")
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

    def _index(self, number: int, selection: Selection) -> int:
        """Adds the rows of one file that are taken; returns how many rows it has."""
        path = self.paths[number]
        needed = list(dict.fromkeys((*selection.fields, *([self.label] if self.label else []))))
        with _open(path) as file:
            names = file.schema_arrow.names
            for name in (*self.columns, *needed):
                if name not in names:
                    raise ConfigError(
                        f"column {name!r}: {path} has no such column; it has {', '.join(names)}.{nearest(name, names)}"
                    )
            self._check_media(file.schema_arrow.field(self.media).type, path)
            total = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                columns = {}
                if needed:
                    columns = file.read_row_group(group, columns=needed, use_threads=False).to_pydict()
                for row in range(size):
                    fields = {name: columns[name][row] for name in needed}
                    if selection.takes(fields, f"{path.name}:{total + row}"):
                        self.rows.append((number, group, row))
                        if self.label and fields[self.label] is not None:
                            self._names.add(str(fields[self.label]))
                total += size
        return total

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
        return len(self.rows)

    def read(self, index: int) -> Record:
        number, group, row = self.rows[index]
        path = self.paths[number]
        key = f"{self._stems[number]}:{group}:{row}"
        origin = f"{path} row group {group} row {row}"
        table = self._row_group(number, group)
        try:
            fields = {name: table.column(name)[row].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            raise DataError(f"{origin}: a text column is not UTF-8: {error}") from error
        media, suffix = fields.pop(self.media), ""
        if isinstance(media, dict):
            suffix = Path(media.get("path") or "").suffix.lower()
            media = media["bytes"]
        if not media:
            raise DataError(f"{origin}: column {self.media!r} holds no bytes")
        label = None
        if self.label:
            label = None if fields[self.label] is None else str(fields[self.label])
        return Record(key, origin, media, suffix, self.captions.texts(fields, label, origin), label)

    def _row_group(self, number: int, group: int):
        place = (number, group)
        if place not in self._cache:
            with _open(self.paths[number]) as file:
                # One thread: the thread pool of a parent process does not survive a fork into a loader's worker.
                self._cache[place] = file.read_row_group(group, columns=self.columns, use_threads=False)
            while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(place)
        return self._cache[place]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cache": OrderedDict()}

    def labels(self) -> list[str]:
        return sorted(self._names)

    def fingerprint(self) -> str:
        files = (f"{path.name}:{path.stat().st_size}" for path in self.paths)
        return digest("parquet", *files, *self.columns, str(self.rows))


def _several(paths: list[Path]) -> str:
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


@contextmanager
def _open(path: Path) -> Iterator:
    """An open ParquetFile. Whatever is wrong with the file, in opening or in use, becomes a DataError."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError('kind: parquet needs pyarrow: pip install "selfflow[data]"') from error
    try:
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a Parquet file, or damaged: {error}") from error
