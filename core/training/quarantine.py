"""Records that could not be used: written down, counted, and a reason to stop when there are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from core.errors import DataError
from core.training.feed import Rejected
from core.training.records import keep_lines, read_lines


class Quarantine:
    """Appends each rejected record once to `path` (JSON lines: modality, key, origin, reason, positions).

    Args:
        limit: more distinct records than this stop the run with a DataError.
    """

    def __init__(self, path: Path, limit: int):
        self.path, self.limit = path, limit
        self._known: dict[tuple[str, str], dict] = {}
        keep_lines(path)  # cuts off the half-written last line of a killed run; that record will be met again
        for entry in read_lines(path):
            self._known[entry["modality"], entry["key"]] = entry

    def __len__(self) -> int:
        return len(self._known)

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Note the records; raises DataError while more than `limit` distinct ones are known, also after a restart."""
        for item in rejected:
            if (item.modality, item.key) not in self._known:
                entry = asdict(item)
                self._known[item.modality, item.key] = entry
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
        if len(self) > self.limit:
            last = "\n".join(f"  {e['origin']}: {e['reason']}" for e in list(self._known.values())[-5:])
            raise DataError(
                f"{len(self)} records could not be used, more than data_limit {self.limit}. The last ones:\n{last}\n"
                f"All are listed in {self.path}"
            )
