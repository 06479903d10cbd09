"""What one should know about a run's data before training on it, as inspect, the dry run and training report it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.durable import write_durably
from modalities.base import Source

NOTES = "data.json"


def data_lines(source: Source) -> list[str]:
    """What a source leaves out and takes through links, in few words; [] where there is nothing to say."""
    line = source.account().line()
    return [line] if line else []


def report_data(sources: dict[str, Source], run: Path) -> None:
    """Say it for every stream when a training starts, and note it in full in the run folder."""
    for name, source in sources.items():
        for line in data_lines(source):
            print(f"{name}: {line}", file=sys.stderr)
    notes = {name: {"records": len(source), "notes": source.account().lines()} for name, source in sources.items()}
    write_durably(run / NOTES, json.dumps(notes, indent=1, ensure_ascii=False) + "\n")


def noted_lines(run: Path) -> list[str]:
    """What `report_data` noted in a run folder; [] for a run without notes, or with damaged ones."""
    try:
        notes = json.loads((run / NOTES).read_text(encoding="utf-8"))
        return [f"{name:9} {line}" for name, entry in notes.items() for line in entry["notes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
