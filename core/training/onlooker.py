"""The run folder for processes other than the first: they compute the same lines, and write none of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Onlooker:
    """Has the methods of a RunFolder that a trainer calls in every process, and holds nothing."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def write_metrics(self, metrics: dict[str, float | str]) -> None: ...

    def write_timing(self, step: int, **seconds: float) -> None: ...

    def write_ranks(self, step: int, compared: Mapping[str, Mapping[str, float]] | None) -> None: ...

    def truncate(self, step: int) -> None: ...

    def note_compiled(self, step: int, compiled: bool, why: str) -> None: ...

    def ended(self, state: str, step: int, reason: str = "") -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...
