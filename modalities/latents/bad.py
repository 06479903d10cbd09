"""Records that could not be encoded: one entry for each, whatever the number of its views, and the limit on them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from core.errors import DataError

if TYPE_CHECKING:
    from modalities.latents.chunks import ChunkFolder

SHOWN = 5  # records in a message


def bad_entry(index: int, views: Iterable[int], key: str, origin: str, error: Exception | str) -> dict[str, Any]:
    """
    Args:
        index: of the record in its source.
        views: those that are left out.
    """
    return {"index": index, "views": list(views), "key": key, "origin": origin, "reason": str(error)}


def one_each(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of one record joined: all of its views, with the reason that came first. In the order of the source."""
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        known = found.setdefault(entry["index"], {**entry, "views": []})
        known["views"] = sorted({*known["views"], *entry["views"]})
    return [found[index] for index in sorted(found)]


def lines(entries: list[dict[str, Any]], shown: int = SHOWN) -> list[str]:
    """The first of them for people, and how many more there are."""
    found = [f"{entry['origin']}: {entry['reason'].removeprefix(entry['origin']).lstrip(': ')}" for entry in entries]
    return found[:shown] + ([f"and {len(found) - shown:,} more"] if len(found) > shown else [])


class BadRecords:
    """Counts the records of a folder that cannot be used, and ends the work when there are more than `limit`.

    Records are counted, not their views; those in finished chunks count too, whichever process made them.
    """

    def __init__(self, folder: ChunkFolder, limit: int):
        self.folder, self.limit = folder, limit
        self.records: set[int] = set()  # indices in the source
        self._entries: list[dict[str, Any]] = []  # met by this process
        self._looked: set[int] = set()  # chunks

    def look(self) -> None:
        """Take in the chunks that were finished since the last look. Raises DataError as `add`."""
        for number in self.folder.there() - self._looked:
            self._looked.add(number)
            self.records |= {entry["index"] for entry in self.folder.read(number).bad}
        self._check()

    def add(self, entries: list[dict[str, Any]]) -> int:
        """The number of records that were not counted yet. Raises DataError when there are too many."""
        before = len(self.records)
        self.records |= {entry["index"] for entry in entries}
        self._entries += entries
        self._check()
        return len(self.records) - before

    def _check(self) -> None:
        if len(self.records) <= self.limit:
            return
        entries = one_each(self._entries)
        with suppress(OSError):  # what ends the work is reported below in any case
            self.folder.note_bad(entries)
        last = "".join(f"\n  {line}" for line in lines(entries[-SHOWN:]))
        raise DataError(
            f"{len(self.records)} records could not be used, more than training.data_limit {self.limit}"
            f"{'. The last ones:' if last else ', in the chunks that are there'}{last}\n"
            f"All of them: {self.folder.quarantine}. Finished chunks are kept. The same command would meet these "
            f"records again; it goes on with a larger limit: training.data_limit={2 * len(self.records)}"
        )
