"""Checkpoints of a run in an object store too, so that the run goes on where its folder is gone.

    URL/step-00001234/...            the files of a checkpoint, as in its folder
    URL/step-00001234/manifest.json  by one PUT, last: the checkpoint counts from then on
    URL/run/...                      the files beside the checkpoints that a run needs to go on

An object store has no rename, so nothing without a manifest is looked at, and what is removed loses its manifest first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from core.errors import ConfigError, NotWrittenError, described
from core.training.manifest import MANIFEST, Verifier, listed_files
from core.training.say import say

RUN = "run"
RUN_FILES = ("config.yaml", "run.json", "metrics.jsonl", "quarantine.jsonl")


class RemoteStore:
    """
    Args:
        url: of a folder in any file system that fsspec knows, such as s3://bucket/runs/joint.

    Raises ConfigError where the package for it is missing, or the URL cannot be read.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            found: tuple[Any, str] = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"training.checkpoint_store: {url}: {described(error)}") from error
        self._fs, self._root = found[0], found[1].rstrip("/")

    def steps(self) -> list[int]:
        """Steps of the checkpoints that count, ascending."""
        with self._reached():
            self._fs.invalidate_cache()
            found = self._fs.glob(f"{self._root}/step-*/{MANIFEST}")
        names = [path.rsplit("/", 2)[1].removeprefix("step-") for path in found]
        return sorted(int(name) for name in names if name.isdigit())

    def put(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files of a checkpoint's folder, which then does not count yet. Raises NotWrittenError."""
        with self._reached():
            for name in names:
                self._put(folder / name, f"{folder.name}/{name}")

    def publish(self, folder: Path, names: Iterable[str]) -> None:
        """The rest of a checkpoint whose other files are there: these, what the run needs beside it, its manifest."""
        self.put(folder, names)
        with self._reached():
            run = folder.parent.parent
            for name in RUN_FILES:
                if (run / name).exists():
                    self._put(run / name, f"{RUN}/{name}")
            self._fs.pipe_file(f"{self._root}/{folder.name}/{MANIFEST}", (folder / MANIFEST).read_bytes())

    def fetch(self, step: int, checkpoints: Path) -> str | None:
        """Copy a checkpoint into the folder of a run's checkpoints; what is wrong with it, where it was not taken."""
        name = f"step-{step:08d}"
        aside = checkpoints / f".writing-{name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with self._reached():
            (aside / MANIFEST).write_bytes(self._fs.cat_file(f"{self._root}/{name}/{MANIFEST}"))
        for file in listed_files(aside):
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            with self._reached(), suppress(FileNotFoundError):
                self._fs.get_file(f"{self._root}/{name}/{file}", str(aside / file))
        problem = Verifier().problem(aside, step)
        if problem is None:
            shutil.rmtree(checkpoints / name, ignore_errors=True)  # a damaged one
            os.rename(aside, checkpoints / name)
        else:
            shutil.rmtree(aside)
        return problem

    def fetch_run(self, run: Path) -> None:
        """Copy what lies beside the checkpoints, which is as new as they are."""
        with self._reached():
            for name in RUN_FILES:
                if self._fs.exists(place := f"{self._root}/{RUN}/{name}"):
                    self._fs.get_file(place, str(run / f".{name}.writing"))
                    os.replace(run / f".{name}.writing", run / name)

    def remove(self, step: int) -> None:
        folder = f"{self._root}/step-{step:08d}"
        with self._reached():
            self._fs.rm_file(f"{folder}/{MANIFEST}")
            self._fs.rm(folder, recursive=True)

    def _put(self, path: Path, name: str) -> None:
        place = f"{self._root}/{name}"
        self._fs.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        self._fs.put_file(str(path), place)

    @contextmanager
    def _reached(self) -> Generator[None, None, None]:
        """Whatever the store of whatever maker raises becomes one line."""
        try:
            yield
        except Exception as error:
            raise NotWrittenError(f"{self.url}: {described(error)}") from error


def bring(url: str, run: Path, newest: int | None) -> int | None:
    """Bring the newest intact checkpoint of an object store into the folder of its run, if the folder has none as new.

    Args:
        newest: intact one of the folder.
    Returns its step; None where nothing was brought. Raises NotWrittenError where the store cannot be reached.
    """
    remote = RemoteStore(url)
    for step in reversed(remote.steps()):
        if newest is not None and newest >= step:
            break
        problem = remote.fetch(step, run / "checkpoints")
        if problem is None:
            remote.fetch_run(run)
            return step
        say(f"checkpoint {remote.url}/step-{step:08d} is damaged and skipped: {problem}")
    return None
