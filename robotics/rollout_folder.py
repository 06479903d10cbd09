"""The folder of a rollout: finished episodes survive any interruption, and the same command resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.durable import writing
from core.errors import ConfigError, DataError

SETTINGS, EPISODES, RESULT, TABLE, VIDEOS = "rollout.json", "episodes.jsonl", "eval_info.json", "table.md", "videos"


class RolloutFolder:
    """
    Args:
        path: a new or empty folder, or one of a rollout with the same settings.
        settings: what the episodes depend on, as JSON.

    Raises:
        ConfigError: the folder holds a rollout with other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        file = path / SETTINGS
        if file.is_file():
            before = _read(file)
            changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            if changed:
                name = changed[0]
                raise ConfigError(
                    f"{path} holds a rollout with {name} {before.get(name)!r}, now it is {settings.get(name)!r};"
                    " give another --out, or remove that folder"
                )
        elif path.exists() and any(path.iterdir()):
            raise ConfigError(f"{path} is not empty, and holds no rollout; give another --out")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings, indent=2) + "\n")

    @property
    def videos(self) -> Path:
        return self.path / VIDEOS

    def records(self) -> dict[int, dict[str, Any]]:
        """Finished episodes by their number."""
        return read_records(self.path)

    def add(self, record: dict[str, Any]) -> None:
        """On the disk when it returns. What a crash left of a line is cut off first."""
        path = self.path / EPISODES
        with writing(path), path.open("ab+") as file:
            file.truncate(_whole(path))
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self, result: dict[str, Any], table: str) -> None:
        """The result as eval_info.json and as a table."""
        with writing(self.path):
            (self.path / RESULT).write_text(json.dumps(result, indent=2) + "\n")
            (self.path / TABLE).write_text(table)


def read_records(path: Path) -> dict[int, dict[str, Any]]:
    """Finished episodes in the folder of a rollout, by their number; a line that was cut short does not count.

    Raises:
        DataError: the file is damaged elsewhere.
    """
    file = path / EPISODES
    if not file.is_file():
        return {}
    lines = file.read_bytes()[: _whole(file)].splitlines()
    try:
        records = [json.loads(line) for line in lines]
        return {int(record["episode_ix"]): record for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); remove the folder and roll out anew") from error


def read_result(path: Path) -> dict[str, Any]:
    """eval_info.json of a finished rollout.

    Raises:
        ConfigError: there is none.
    """
    file = path / RESULT
    if not file.is_file():
        raise ConfigError(f"{path} holds no finished rollout: {RESULT} is missing")
    return _read(file)


def missing(records: dict[int, Any], episodes: Sequence[int]) -> list[int]:
    """The episodes that are still to be run."""
    return [episode for episode in episodes if episode not in records]


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from error
