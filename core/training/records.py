"""The folder of a run, and its self-describing files.

config.yaml     the resolved configuration
run.json        for every start: time, command, versions, commit; the fingerprints of the data; what was changed
                when (core/training/history.py); the weights that it started from; `compile`, how the steps after a
                step are done where that was chosen (core/training/compiled.py); `state`, how it ended: finished,
                stopped or failed, and `end`, its step, time and reason. A run that trains now, or was killed, has
                neither of the two
metrics.jsonl   one line per step, deterministic: an interrupted and resumed run has the same bytes as a whole one
timings.jsonl   one line per step, wall-clock; steps that were done twice are there twice
ranks.jsonl     of several processes, how long the steps took and waited in each, see core/training/stragglers.py
checkpoints/    see core/training/checkpoint.py
run.lock        held by the process that trains here, see core/training/lock.py
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from core.durable import write_durably
from core.errors import ConfigError
from core.training.config import refuse_changes
from core.training.history import NO_CHANGE, Change, clamped, entries_for, read_run, stored_config
from core.training.jsonl import LineWriter, keep_lines
from core.training.jsonl import read_lines as read_lines
from core.training.lock import FolderLock
from core.training.say import say
from core.training.stragglers import FILE as RANKS
from core.training.trackers import LoggingConfig, Trackers

FLUSH_SECONDS = 2.0  # how old a line may get before others can see it
PACKAGES = ("torch", "numpy", "einops", "omegaconf", "safetensors")


class RunFolder:
    """Metrics and timings of a run. Build it with `RunFolder.open`.

    Lines are buffered, and wait while they cannot be written; `flush` makes them durable and must be called before a
    checkpoint is published, so that a checkpoint never knows of a step that metrics.jsonl does not.
    """

    def __init__(self, path: Path, trackers: Trackers, lock: FolderLock):
        self.path, self.trackers, self._lock = Path(path), trackers, lock
        self._files: dict[str, LineWriter] = {}
        self._flushed, self._failing = time.monotonic(), False

    @staticmethod
    def check(
        path: Path, config: dict[str, Any], fingerprints: dict[str, str], free: set[str], change: Change = NO_CHANGE
    ) -> None:
        """Whether a run may start or resume in this folder; nothing is written.

        Args:
            config: the plain resolved configuration.
            fingerprints: data set name -> fingerprint.
            free: settings and sections that may differ from those of the existing run, and are not noted.
            change: what else may differ.
        Raises ConfigError naming every other setting or data set that differs, once the run has a checkpoint.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"run: {path} is a file; it must be a folder or not exist")
        stored = stored_config(path) if _has_checkpoint(path) else None
        if stored is not None:
            refuse_changes(stored, config, free | change.keys)
            known = read_run(path).get("data")
            if known:  # a run that starts from imported weights has none before it trains
                _refuse_other_data(
                    known, {n: known.get(n) if n in change.other_data else f for n, f in fingerprints.items()}
                )

    @staticmethod
    def open(
        path: Path,
        config: dict[str, Any],
        fingerprints: dict[str, str],
        free: set[str],
        change: Change = NO_CHANGE,
        origin: dict[str, Any] | None = None,
    ) -> RunFolder:
        """Create the folder, or open that of an existing run to resume it, and hold it until `close`.

        Arguments and errors are those of `check`, except that `config` may have a section `logging`, a LoggingConfig,
        and that a folder in which another process trains is refused.

        Args:
            origin: the weights that a new run starts from, see configs/init_from.py.
        """
        RunFolder.check(path, config, fingerprints, free, change)
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(path)
        try:
            known = read_run(path)
            start = _start()
            content: dict[str, Any] = {"id": known.get("id", os.urandom(4).hex()), "data": fingerprints}
            if origin := origin or known.get("init"):
                content["init"] = origin
            if "compile" in known:
                content["compile"] = known["compile"]
            stored = stored_config(path) if _has_checkpoint(path) else None
            step = _newest(path) if change.step is None else change.step
            if stored is not None:
                changes = clamped(known.get("changes", []), step)
                changes += entries_for(stored, config, change, step, start["time"], start["command"])
                asked = [*known.get("arguments", []), *change.arguments]
                content |= {"changes": changes} if changes else {}
                content |= {"arguments": asked} if asked else {}
            content["starts"] = [*known.get("starts", []), start]
            _replace(
                {
                    path / "run.json": json.dumps(content, indent=1) + "\n",
                    path / "config.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120),
                }
            )
            trackers = Trackers(LoggingConfig(**config.get("logging", {})), path, config, content["id"], step)
        except BaseException:
            lock.release()
            raise
        return RunFolder(path, trackers, lock)

    def write_metrics(self, metrics: dict[str, float | str]) -> None:
        """Deterministic values of a step: `step` (finished steps) and what was computed, never a time or a rate."""
        self._write("metrics.jsonl", {"step": metrics["step"], **metrics})
        self.trackers.write(metrics)

    def write_timing(self, step: int, **seconds: float) -> None:
        """Wall-clock values of a step."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write("timings.jsonl", {"step": step, "time": now, **{k: round(v, 6) for k, v in seconds.items()}})

    def write_ranks(self, step: int, compared: Mapping[str, Mapping[str, float]] | None) -> None:
        """Wall-clock values of all processes, see core/training/stragglers.py; None where they are not due."""
        if compared is not None:
            self._write(RANKS, {"step": step, **compared})

    def truncate(self, step: int) -> None:
        """Forget the metrics of steps after `step`, and half-written last lines; called before training resumes."""
        self.close_files()
        keep_lines(self.path / "metrics.jsonl", lambda entry: entry["step"] <= step)
        keep_lines(self.path / "timings.jsonl")
        keep_lines(self.path / RANKS)

    def note_compiled(self, step: int, compiled: bool, why: str) -> None:
        """Note in run.json how the steps after `step` are done; what it said of later ones is forgotten."""
        entry = {"step": step, "compiled": compiled, "why": why}
        try:
            content = read_run(self.path)
            known = [earlier for earlier in content.get("compile", []) if earlier["step"] < step]
            _replace({self.path / "run.json": json.dumps(content | {"compile": [*known, entry]}, indent=1) + "\n"})
        except (OSError, ConfigError) as error:
            say(f"warning: run.json cannot tell how the steps are done: {error}")

    def ended(self, state: str, step: int, reason: str = "") -> None:
        """See `note_end`."""
        note_end(self.path, state, step, reason)

    def flush(self) -> None:
        """Make every line durable. Raises OSError; what could not be written is kept for the next time.

        A folder that is gone, as of a file system that is no longer mounted, is an error too: open files would not
        notice, and checkpoints would begin another run in its place.
        """
        if not (self.path / "run.json").exists():
            raise FileNotFoundError(errno.ENOENT, "the run folder is gone", str(self.path))
        for file in self._files.values():
            file.sync()
        self._flushed, self._failing = time.monotonic(), False

    def close(self) -> None:
        """Flush, end the trackers, and let others train in the folder. Lines that cannot be written are lost: the steps
        since the last checkpoint are made again."""
        try:
            self.flush()
        except OSError as error:
            say(f"warning: the last lines of the metrics could not be written: {error}")
        self.close_files()
        self.trackers.close()
        self._lock.release()

    def close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = LineWriter(self.path / name)
        self._files[name].add(entry)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:  # visible to readers; durable only in `flush`
            self._flushed = time.monotonic()
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the lines to the system. A failure is reported once: the next checkpoint decides what it means."""
        for file in self._files.values():
            try:
                file.write()
            except OSError as error:
                if not self._failing:
                    say(f"warning: {file.path} cannot be written ({error.strerror}); its lines wait in memory")
                self._failing = True
                return
        self._failing = False


def note_end(path: Path, state: str, step: int, reason: str = "") -> None:
    """Note in run.json how the run ended. Scripts read it there: torchrun gives 1 after every signal.

    Args:
        state: finished, stopped or failed.
        step: finished steps.
    """
    end = {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}
    try:
        content = read_run(path) | {"state": state, "end": end}
        _replace({path / "run.json": json.dumps(content, indent=1) + "\n"})
    except (OSError, ConfigError) as error:
        say(f"warning: run.json cannot tell that the run {state}: {error}")


def _has_checkpoint(path: Path) -> bool:
    return any((path / "checkpoints").glob("step-*"))


def _newest(path: Path) -> int:
    """Step of the newest checkpoint, intact or not; 0 where there is none."""
    names = [folder.name.removeprefix("step-") for folder in (path / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


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


def _replace(texts: dict[Path, str]) -> None:
    """Write files, in this order, so that a killed process or a full disk leaves the old text or the new one."""
    asides = {path: path.with_name(f".{path.name}.writing") for path in texts}
    try:
        for path, text in texts.items():
            write_durably(asides[path], text)
    except OSError:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise
    for path, aside in asides.items():
        os.replace(aside, path)
