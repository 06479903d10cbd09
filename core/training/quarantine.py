"""Records that could not be used: written down, counted, and a reason to stop when there are too many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.training.distributed import ALONE, World
from core.training.jsonl import LineWriter, keep_lines, read_lines
from core.training.loader import Rejected
from core.training.say import say


class Quarantine:
    """Appends each rejected record once to `path` (JSON lines: stream, key, origin, reason, positions).

    Args:
        limit: more distinct records than this stop the run with a DataError.
        world: processes that know the same records; the first one writes them.
    """

    def __init__(self, path: Path, limit: int, world: World = ALONE):
        self.path, self.limit, self.world = path, limit, world
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        self._lines, self._failing = LineWriter(path), False
        for entry in world.on_first(self._read):
            self._known[entry["stream"], entry["key"]] = entry

    def _read(self) -> list[dict[str, Any]]:
        keep_lines(self.path)  # cuts off the half-written last line of a killed run; that record will be met again
        return read_lines(self.path)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Note the records; raises DataError while more than `limit` distinct ones are known, also after a restart."""
        for item in rejected:
            if (item.stream, item.key) not in self._known:
                entry = asdict(item)
                self._known[item.stream, item.key] = entry
                if self.world.is_first:
                    self._lines.add(entry)
                    self.write()
        if len(self) > self.limit:
            last = "\n".join(f"  {e['origin']}: {e['reason']}" for e in list(self._known.values())[-5:])
            raise DataError(
                f"{len(self)} records could not be used, more than data_limit {self.limit}. The last ones:\n{last}\n"
                f"All are listed in {self.path}"
            )

    def write(self) -> None:
        """Hand the lines to the system. Where that fails they wait, which is reported once: a record that
        is never written is met again by a resumed run, or was met before its checkpoint and only lacks its line."""
        try:
            self._lines.write()
            self._failing = False
        except OSError as error:
            if not self._failing:
                say(f"warning: {self.path} cannot be written ({error.strerror}); its lines wait in memory")
            self._failing = True

    def close(self) -> None:
        """Write what waits, if it can be."""
        if self.world.is_first:
            self.write()
        self._lines.close()
