"""Records that could not be used: written down, counted, and a reason to stop when there are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from core.errors import DataError
from core.training.feed import Rejected


class Quarantine:
    """Appends each rejected record once to `path` (JSON lines: modality, key, origin, reason, positions).

    Args:
        limit: more distinct records than this stop the run with a DataError.
    """

    def __init__(self, path: Path, limit: int):
        self.path, self.limit = path, limit
        self._known: dict[tuple[str, str], dict] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the half-written last line of a killed run; the record will be met again
                self._known[entry["modality"], entry["key"]] = entry

    def __len__(self) -> int:
        return len(self._known)

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Note the records; raises DataError once more than `limit` distinct ones are known."""
        new = [item for item in rejected if (item.modality, item.key) not in self._known]
        if not new:
            return
        with self.path.open("a") as file:
            for item in new:
                entry = asdict(item)
                self._known[item.modality, item.key] = entry
                file.write(json.dumps(entry) + "\n")
        if len(self) > self.limit:
            last = "\n".join(f"  {e['origin']}: {e['reason']}" for e in list(self._known.values())[-5:])
            raise DataError(
                f"{len(self)} records could not be used, more than data_limit {self.limit}. The last ones:\n{last}\n"
                f"All are listed in {self.path}"
            )
