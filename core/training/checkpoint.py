"""Checkpoints that are complete or absent, never partial.

    root/step-00001234/tensors/PART/  student, teacher, optimizer, ..., each written by torch.distributed.checkpoint
    root/step-00001234/state.json     the step and plain data of the caller
    root/step-00001234/manifest.json  size and blake2b of every other file; written last

A checkpoint is written aside, synced to disk and renamed, so a killed process leaves the old state or the new one.
torch.distributed.checkpoint has no checksums and casts dtypes silently; the manifest and the checks here close both.
A folder that already exists is never written to. Files are verified once per store, and only those that are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from core.durable import sync, write_durably
from core.errors import CheckpointError, NotWrittenError, nearest
from core.training.distributed import ALONE, World
from core.training.manifest import MANIFEST, TENSORS, Verifier, describe, encode, is_of_other_version, write_manifest
from core.training.remote import RemoteStore
from core.training.say import say

PARTS = ("student", "teacher", "optimizer")
STATE = "state.json"


def flatten(state: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested dicts of tensors -> {"student/blocks.0.weight": tensor}; anything else is a CheckpointError."""
    flat = {}
    for name, value in state.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
        else:
            raise CheckpointError(
                f"state {prefix}{name}: {type(value).__name__}, only tensors are allowed; plain data belongs in `extra`"
            )
    return flat


def digest(state: dict[str, Any]) -> dict[str, str]:
    """One blake2b checksum for each part of a state, over name, dtype, shape and bytes in the order of names."""
    found = {}
    for part, tensors in state.items():
        checksum = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(flatten(tensors).items()):
            gather = getattr(tensor, "full_tensor", None)  # of a sharded one
            whole = tensor if gather is None else gather()
            checksum.update(f"{name}\0{whole.dtype}\0{tuple(whole.shape)}\0".encode())
            checksum.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        found[part] = checksum.hexdigest()
    return found


class CheckpointStore:
    """The checkpoints of one run. Reading changes nothing on disk; the one publishing process tidies up.

    Args:
        root: folder of the checkpoints; created by the first `publish`.
        keep: how many of the newest intact checkpoints stay, at least 1.
        keep_every: checkpoints of steps that are multiples of this stay forever; 0 for none.
        report: receives one line for every damaged checkpoint that is skipped.
        world: the processes that publish and load together. Whatever else reads is for each process alone.
        remote: where every checkpoint is copied to, once it is published here.
    """

    def __init__(
        self,
        root: Path,
        keep: int = 2,
        report: Callable[[str], None] | None = None,
        keep_every: int = 0,
        world: World = ALONE,
        remote: RemoteStore | None = None,
    ):
        if keep < 1:
            raise CheckpointError(f"keep: {keep} must be at least 1")
        self.root, self.keep, self.keep_every = Path(root), keep, keep_every
        self.report, self.world, self.remote = report or say, world, remote
        self._verifier, self._reported = Verifier(), set()

    def folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of all checkpoint folders, ascending, intact or not."""
        names = [path.name.removeprefix("step-") for path in self.root.glob("step-*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def latest(self, parts: Collection[str] | None = None) -> int | None:
        """The newest step whose files match their manifest; every damaged newer one is reported, once.

        Args:
            parts: those that are going to be read, such as ("teacher",): the files of others are not looked at. None
                for all of them.
        Raises CheckpointError for a checkpoint that another version of this project has written.
        """
        for step in reversed(self.steps()):
            problem = self._verifier.problem(self.folder(step), step, parts)
            if problem is None:
                return step
            if is_of_other_version(self.folder(step)):
                raise CheckpointError(
                    f"checkpoint {self.folder(step)} was written by another version of this project ({problem}); use "
                    "that version, or start a new run in another folder"
                )
            if step not in self._reported:
                self._reported.add(step)
                self.report(f"checkpoint {self.folder(step)} is damaged and skipped: {problem}")
        return None

    def problem(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, all of which are read again; None if it is intact."""
        self._verifier.forget(self.folder(step))
        return self._verifier.problem(self.folder(step), step)

    def require(self, step: int, parts: Collection[str] | None = None) -> None:
        """Raise CheckpointError unless these parts of a checkpoint, or all, and what lies beside them are intact."""
        if not self.folder(step).is_dir():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.root}; there are: {steps}")
        problem = self._verifier.problem(self.folder(step), step, parts)
        if problem is not None:
            raise CheckpointError(f"checkpoint {self.folder(step)} is damaged: {problem}")

    def publish(self, step: int, state: dict[str, Any], extra: dict[str, Any]) -> Path:
        """Write a checkpoint and then remove those that are too old. The caller's tensors may change afterwards.

        Every process of the world calls it and writes what it holds of sharded tensors; the first one does the rest.

        Args:
            step: number of finished optimizer steps.
            state: nested dicts of tensors, see `training_state`.
            extra: plain data (JSON) stored beside them.
        Raises NotWrittenError when it cannot be written (a full disk) or copied, and CheckpointError when it exists;
        nothing half-written stays, and every process raises it.
        """
        final = self.folder(step)
        aside = self.root / f".writing-{final.name}"
        flat = {part: flatten(tensors, f"{part}/") for part, tensors in state.items()}
        try:
            self.world.on_first(lambda: self._begin(final, aside, list(flat), step))
            written = self.world.on_all(lambda: self._write(aside, flat))
            files = {name: found for own in self.world.gather(written) for name, found in own.items()}
            self.world.on_first(lambda: self._finish(final, aside, step, extra, files))
        except NotWrittenError:
            if self.world.is_first:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        self._verifier.written(final)
        self._reported.discard(step)
        if (remote := self.remote) is not None:  # each process copies the files that it wrote
            self.world.on_all(lambda: remote.put(final, written))
            self.world.on_first(lambda: remote.publish(final, [STATE]))
        if self.world.is_first:
            try:
                self._prune()
            except (
                OSError,
                NotWrittenError,
            ) as error:  # the new one is safe; the next save tidies up
                self.report(f"old checkpoints in {self.root} could not be removed: {_reason(error)}")
        return final

    def _begin(self, final: Path, aside: Path, parts: list[str], step: int) -> None:
        """Room for a checkpoint."""
        with _not_written(final):
            self.root.mkdir(parents=True, exist_ok=True)
            self._tidy()
            if final.exists():
                if self.problem(step) is None:
                    raise CheckpointError(f"checkpoint {final} exists already and is intact; it is not overwritten")
                os.rename(final, self.root / f".removing-{final.name}")
            os.mkdir(aside)
            os.mkdir(aside / TENSORS)
            for part in parts:
                os.mkdir(aside / TENSORS / part)

    def _write(self, folder: Path, flat: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, int | str]]:
        """The tensors that this process holds, synced; size and checksum of each file that it wrote."""
        found = {}
        with _not_written(self.root / folder.name.removeprefix(".writing-")):
            for part, tensors in flat.items():
                writer = FileSystemWriter(folder / TENSORS / part, sync_files=True)
                with _single_process_is_fine():
                    save(
                        _without(part, tensors),
                        storage_writer=writer,
                        process_group=self.world.waiting,
                        no_dist=self.world.size == 1,
                    )
                names = [path.name for path in (folder / TENSORS / part).glob(f"__{self.world.rank}_*")]
                names += [".metadata"] if self.world.is_first else []
                for name in names:
                    path = folder / TENSORS / part / name
                    found[path.relative_to(folder).as_posix()] = describe(path)
        return found

    def _finish(
        self, final: Path, aside: Path, step: int, extra: dict[str, Any], files: dict[str, dict[str, int | str]]
    ) -> None:
        """What lies beside the tensors, the manifest last, the folders themselves, and the name that counts."""
        with _not_written(final):
            for part in (aside / TENSORS).iterdir():
                sync(part)
            milestone = {"milestone": True} if self.keep_every and step and step % self.keep_every == 0 else {}
            # In the order of the caller: that of streams and of their parts means something.
            write_durably(aside / STATE, encode({"step": step, "extra": extra, **milestone}, sort_keys=False))
            write_manifest(aside, step, files | {STATE: describe(aside / STATE)})
            sync(aside / TENSORS)
            sync(aside)
            os.rename(aside, final)
            sync(self.root)

    def load(self, step: int, into: dict[str, Any], leave: Callable[[str], bool] = lambda key: False) -> None:
        """Read a checkpoint into the tensors of `into`, in place, bit for bit.

        Args:
            leave: whether a key is not taken: neither is it read into `into`, nor must either side have it.
        Raises CheckpointError, before anything is touched, if the checkpoint is damaged or if a key, shape or dtype
        differs from `into`.
        """
        self.require(step)
        wanted = {key: tensor for key, tensor in flatten(into).items() if not leave(key)}
        stored = {key: item for key, item in self.stored(step).items() if not leave(key)}
        problems = [f"{key}: not in the checkpoint.{nearest(key, stored)}" for key in wanted if key not in stored]
        problems += [f"{key}: in the checkpoint, but not in the model" for key in stored if key not in wanted]
        for key in wanted.keys() & stored.keys():
            have, want = stored[key], wanted[key]
            if tuple(have.size) != tuple(want.shape):
                problems.append(f"{key}: shape {tuple(have.size)} in the checkpoint, {tuple(want.shape)} in the model")
            if have.properties.dtype != want.dtype:
                problems.append(f"{key}: {have.properties.dtype} in the checkpoint, {want.dtype} in the model")
        if problems:
            shown = sorted(problems)[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
            raise CheckpointError(f"checkpoint {self.folder(step)} does not fit:\n  " + "\n  ".join(shown))
        self._read(step, wanted)

    def load_weights(self, step: int, which: str = "teacher") -> dict[str, Tensor]:
        """One part of a checkpoint alone, on the CPU: {name: tensor}; for the optimizer {name/slot: tensor}."""
        stored = self.stored(step, (which,))
        if not stored:
            known = ", ".join(self.parts(step))
            raise CheckpointError(f"checkpoint {self.folder(step)} has no {which!r}; it has {known}")
        tensors = {key: torch.empty(item.size, dtype=item.properties.dtype) for key, item in stored.items()}
        self._read(step, tensors, alone=True)
        return _without(which, tensors)

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint stays forever: by `keep_every` now, or when it was published."""
        if self.keep_every and step and step % self.keep_every == 0:
            return True
        try:
            return json.loads((self.folder(step) / STATE).read_text()).get("milestone", False)
        except (OSError, ValueError, AttributeError):  # damaged
            return False

    def extra(self, step: int) -> dict[str, Any]:
        """The plain data that was published with the step."""
        self.require(step, ())
        return json.loads((self.folder(step) / STATE).read_text())["extra"]

    def fingerprint(self, step: int) -> str:
        """Differs where any file of two checkpoints does: the manifest has their checksums."""
        self.require(step, ())
        return hashlib.blake2b((self.folder(step) / MANIFEST).read_bytes(), digest_size=8).hexdigest()

    def parts(self, step: int) -> list[str]:
        """Names of the parts that a checkpoint has."""
        self.require(step, ())
        names = [path.name for path in (self.folder(step) / TENSORS).iterdir()]
        return [*(name for name in PARTS if name in names), *sorted(set(names) - set(PARTS))]

    def stored(self, step: int, parts: Collection[str] | None = None) -> dict[str, TensorStorageMetadata]:
        """Key -> metadata (`size`, `properties.dtype`) of every tensor of some parts, or of all."""
        self.require(step, parts)
        found: dict[str, TensorStorageMetadata] = {}
        for part in self.parts(step):
            if parts is None or part in parts:
                metadata = FileSystemReader(self.folder(step) / TENSORS / part).read_metadata()
                for name, item in metadata.state_dict_metadata.items():
                    assert isinstance(item, TensorStorageMetadata)  # `flatten` lets nothing else in
                    found[f"{part}/{name}"] = item
        return found

    def _read(self, step: int, tensors: dict[str, Tensor], alone: bool = False) -> None:
        """`alone` without the other processes of the world."""
        by_part: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            by_part.setdefault(part, {})[name] = tensor
        for part, own in by_part.items():
            reader = FileSystemReader(self.folder(step) / TENSORS / part)
            with _single_process_is_fine():
                no_dist = alone or self.world.size == 1
                load(own, storage_reader=reader, process_group=self.world.waiting, no_dist=no_dist)

    def _prune(self) -> None:
        """Remove what is older than the newest `keep` intact checkpoints, but no milestone; damaged ones do not count
        as kept."""
        kept = []
        for step in reversed(self.steps()):
            if len(kept) < self.keep:
                if self._verifier.problem(self.folder(step), step) is None:
                    kept.append(step)
            elif not self.is_milestone(step):
                self._put_away(step)
        self._tidy()
        self._prune_remote()

    def _prune_remote(self) -> None:
        if (remote := self.remote) is not None:
            for step in remote.steps()[: -self.keep]:
                if not self.keep_every or step % self.keep_every:
                    remote.remove(step)

    def forget(self, step: int) -> None:
        """Remove the checkpoints of all steps after `step`, which will be made again."""
        for later in self.steps():
            if later > step:
                self._put_away(later)
        self._tidy()

    def _put_away(self, step: int) -> None:
        """Renamed first: a half-removed folder must not look like a checkpoint."""
        os.rename(self.folder(step), self.root / f".removing-{self.folder(step).name}")
        self._verifier.forget(self.folder(step))

    def _tidy(self) -> None:
        """Remove what killed saves and removals left behind."""
        for path in [*self.root.glob(".writing-*"), *self.root.glob(".removing-*")]:
            shutil.rmtree(path)


def _without(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part by their names within it."""
    return {key.removeprefix(f"{part}/"): tensor for key, tensor in tensors.items()}


@contextmanager
def _single_process_is_fine() -> Generator[None, None, None]:
    """Without torch's warning that nothing is distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _not_written(checkpoint: Path) -> Generator[None, None, None]:
    """A full disk and the like, also inside torch's wrapper, become a NotWrittenError of one line."""
    try:
        yield
    except (OSError, CheckpointException) as error:
        raise NotWrittenError(f"checkpoint {checkpoint} could not be written: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The failure inside torch's wrapper, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
