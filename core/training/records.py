"""The folder of a run, which explains itself.

config.yaml     the resolved configuration
run.json        for every start: time, command, versions, commit; and the fingerprints of the data
metrics.jsonl   one line per step, deterministic: an interrupted and resumed run has the same bytes as a whole one
timings.jsonl   one line per step, wall-clock; steps that were done twice are there twice
checkpoints/    see core/training/checkpoint.py
run.lock        held by the process that trains here, see core/training/lock.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import yaml

from core.durable import write_durably
from core.errors import ConfigError
from core.training.config import read_plain, refuse_changes
from core.training.lock import FolderLock
from core.training.trackers import LoggingConfig, Trackers

FLUSH_SECONDS = 2.0  # how old a line may get before others can see it
PACKAGES = ("torch", "numpy", "einops", "omegaconf", "safetensors")


class RunFolder:
    """Metrics and timings of a run. Build it with `RunFolder.open`.

    Lines are buffered; `flush` makes them durable and must be called before a checkpoint is published, so that a
    checkpoint never knows of a step that metrics.jsonl does not.
    """

    def __init__(self, path: Path, trackers: Trackers, lock: FolderLock):
        self.path, self.trackers, self._lock = Path(path), trackers, lock
        self._files: dict[str, TextIO] = {}
        self._flushed = time.monotonic()

    @staticmethod
    def check(path: Path, config: dict, fingerprints: dict[str, str], free: set[str]) -> None:
        """Whether a run may start or go on in this folder; nothing is written.

        Args:
            config: the plain resolved configuration.
            fingerprints: data set name -> fingerprint.
            free: settings and sections that may differ from those of the existing run.
        Raises ConfigError naming every other setting or data set that differs, once the run has a checkpoint.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run: {path} is a file; it must be a folder or not exist")
        if any((path / "checkpoints").glob("step-*")) and (path / "config.yaml").exists():
            refuse_changes(read_plain(path / "config.yaml"), config, free)
            known = _read_json(path / "run.json").get("data")
            if known:  # a run that starts from imported weights has none before it trains
                _refuse_other_data(known, fingerprints)

    @staticmethod
    def open(path: Path, config: dict, fingerprints: dict[str, str], free: set[str]) -> RunFolder:
        """Create the folder, or open that of an existing run to resume it, and hold it until `close`.

        Arguments and errors are those of `check`, except that `config` may have a section `logging`, a LoggingConfig,
        and that a folder in which another process trains is refused."""
        RunFolder.check(path, config, fingerprints, free)
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        known = _read_json(path / "run.json")
        starts = [*known.get("starts", []), _start()]
        identity = known.get("id", os.urandom(4).hex())
        _replace(path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120))
        _replace(
            path / "run.json",
            json.dumps({"id": identity, "data": fingerprints, "starts": starts}, indent=1) + "\n",
        )
        return RunFolder(path, Trackers(LoggingConfig(**config.get("logging", {})), path, config, identity), lock)

    def write_metrics(self, metrics: dict[str, float | str]) -> None:
        """Deterministic values of a step: `step` (finished steps) and what was computed, never a time or a rate."""
        self._write("metrics.jsonl", {"step": metrics["step"], **metrics})
        self.trackers.write(metrics)

    def write_timing(self, step: int, **seconds: float) -> None:
        """Wall-clock values of a step."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write("timings.jsonl", {"step": step, "time": now, **{k: round(v, 6) for k, v in seconds.items()}})

    def truncate(self, step: int) -> None:
        """Forget the metrics of steps after `step`, and half-written last lines; called before training goes on."""
        self.close_files()
        keep_lines(self.path / "metrics.jsonl", lambda entry: entry["step"] <= step)
        keep_lines(self.path / "timings.jsonl")

    def flush(self) -> None:
        """Make every line durable."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush, end the trackers, and let others train in the folder."""
        self.close_files()
        self.trackers.close()
        self._lock.release()

    def close_files(self) -> None:
        self.flush()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, name: str, entry: dict) -> None:
        if name not in self._files:
            self._files[name] = (self.path / name).open("a", encoding="utf-8")
        self._files[name].write(json.dumps(entry) + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:  # visible to readers; durable only in `flush`
            for file in self._files.values():
                file.flush()
            self._flushed = time.monotonic()


def read_lines(path: Path) -> list[dict]:
    """The entries of a JSON-lines file; a half-written last line is left out, an absent file is empty."""
    if not path.exists():
        return []
    return [entry for _, entry in _parse(path.read_bytes())]


def _parse(data: bytes) -> list[tuple[int, dict]]:
    """(offset of its end, entry) of every whole line, up to the first that is not a JSON object."""
    found, end = [], 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        try:
            entry = json.loads(line)
        except ValueError:  # half-written; nothing after it can be trusted
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            break
        found.append((end, entry))
    return found


def keep_lines(path: Path, wanted: Callable[[dict], bool] = lambda entry: True) -> None:
    """Cut a JSON-lines file behind the last line of its leading run of `wanted` entries. Atomic: one truncation."""
    if not path.exists():
        return
    data = path.read_bytes()
    keep = 0
    for end, entry in _parse(data):
        if not wanted(entry):
            break
        keep = end
    if keep < len(data):
        with path.open("rb+") as file:
            file.truncate(keep)
            os.fsync(file.fileno())


def _refuse_other_data(old: dict[str, str], new: dict[str, str]) -> None:
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    if changed:
        raise ConfigError(
            [f"data of {n}: {old.get(n)} when the run was started, {new.get(n)} now (fingerprints)" for n in changed]
            + ["The records or their order have changed, so the run cannot be resumed; use another run folder."]
        )


def _start() -> dict[str, Any]:
    """What this start of the program is made of."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = metadata.version(name)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        **commit(),
    }


def commit() -> dict[str, Any]:
    """Commit of the checkout that this file lies in, and whether it differs from it; nothing outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": _git(root, "status", "--porcelain", "--untracked-files=no") != ""}
    except (OSError, subprocess.SubprocessError):  # git is not installed, or the checkout has no commit
        return {}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); remove it to resume without its history") from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that a killed process leaves the old text or the new one."""
    aside = path.with_name(f".{path.name}.writing")
    write_durably(aside, text)
    os.replace(aside, path)
