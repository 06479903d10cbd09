"""metadata.jsonl and metadata.csv, as the folders of Hugging Face's datasets have them: a line of fields for a file.

The lines stay in their file and are read when they are needed; memory holds where they lie.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from core.errors import DataError
from modalities.data.sources.account import Account
from modalities.data.sources.names import composed
from modalities.data.sources.sidecars import parse_json, parse_text

METADATA = ("metadata.jsonl", "metadata.csv")
_NAME = "file_name"


class Metadata:
    """The lines that belong to media, by the column `file_name`: a path from the folder of the table.

    Args:
        root: of the data.
        tables, names: below it; of two lines for one file that in the deeper folder counts, and then the later.
        account: takes lines that name no file or cannot be read.
    """

    def __init__(self, root: Path, tables: list[str], names: list[str], account: Account):
        self.root = root
        self.tables = sorted(tables, key=lambda table: (table.count("/"), table))
        # Of each medium: table, offset and size of its line; -1 where it has none.
        self._place = np.full((len(names) if tables else 0, 3), -1, np.int64)
        self._header: dict[int, list[str]] = {}
        rows = {composed(name): row for row, name in enumerate(names)} if tables else {}
        for number, table in enumerate(self.tables):
            folder, kind = posixpath.dirname(table), posixpath.basename(table)
            try:
                for offset, data in self._lines(number):
                    try:
                        name = self._parse(number, data).get(_NAME)
                    except DataError:
                        account.leave(f"line| of {kind} that cannot be read", table)
                        continue
                    path = composed(posixpath.normpath(posixpath.join(folder, str(name).replace("\\", "/"))))
                    if path in rows:
                        self._place[rows[path]] = number, offset, len(data)
                    else:
                        account.leave(f"line| of {kind} without a record", str(name))
            except (OSError, csv.Error) as error:
                account.leave(f"{kind} that cannot be read ({error})", table)

    def fields(self, row: int) -> dict[str, object]:
        """Fields of one medium; {} where no line names it. Raises DataError where the file has changed or is gone."""
        if not len(self._place) or self._place[row, 0] < 0:
            return {}
        number, offset, size = (int(value) for value in self._place[row])
        path = self.root / self.tables[number]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        return {name: value for name, value in self._parse(number, data).items() if name != _NAME}

    def has(self, row: int) -> bool:
        """Whether a line names a medium."""
        return bool(len(self._place)) and self._place[row, 0] >= 0

    def take(self, rows: list[int]) -> None:
        """Forget all media but these, which are renumbered."""
        if len(self._place):
            self._place = self._place[rows]

    def _lines(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every entry of a table; those of a CSV file may be several lines."""
        with (self.root / self.tables[number]).open("rb") as file:
            if not self._is_csv(number):
                offset = 0
                for line in file:
                    if line.strip():
                        yield offset, line
                    offset += len(line)
                return
            taken: list[bytes] = []

            def texts() -> Iterator[str]:
                for line in file:
                    taken.append(line)
                    yield line.decode("utf-8-sig", "replace")

            offset = 0
            for row in csv.reader(texts()):
                data = b"".join(taken)
                taken.clear()
                if number not in self._header:
                    self._header[number] = row
                elif row:
                    yield offset, data
                offset += len(data)

    def _is_csv(self, number: int) -> bool:
        return self.tables[number].lower().endswith(".csv")

    def _parse(self, number: int, data: bytes) -> dict[str, object]:
        where = f"{self.root / self.tables[number]}"
        if not self._is_csv(number):
            return parse_json(data, where)
        text = parse_text(data, where)
        row = next(csv.reader(text.splitlines(keepends=True)), [])
        return {name: value for name, value in zip(self._header[number], row, strict=False) if value != ""}
