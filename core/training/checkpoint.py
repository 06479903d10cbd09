"""Checkpoints that are all there or not there.

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
import sys
import warnings
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from core.durable import sync, write_durably
from core.errors import CheckpointError, NotWrittenError, nearest
from core.training.manifest import TENSORS, Verifier, encode, is_of_other_version, write_manifest
from core.training.optim import AnyOptimizer, optimizers_of

PARTS = ("student", "teacher", "optimizer")
STATE = "state.json"
_NO_MORE: Mapping[str, dict[str, Any]] = MappingProxyType({})


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
        keep_every: checkpoints of steps that are multiples of this stay for ever; 0 for none.
        report: receives one line for every damaged checkpoint that is skipped.
    """

    def __init__(self, root: Path, keep: int = 2, report: Callable[[str], None] | None = None, keep_every: int = 0):
        if keep < 1:
            raise CheckpointError(f"keep: {keep} must be at least 1")
        self.root, self.keep, self.keep_every = Path(root), keep, keep_every
        self.report = report or (lambda line: print(line, file=sys.stderr))
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

        Args:
            step: number of finished optimizer steps.
            state: nested dicts of tensors, see `training_state`.
            extra: plain data (JSON) stored beside them.
        Raises NotWrittenError when it cannot be written (a full disk), and CheckpointError when it exists; nothing
        half-written stays.
        """
        final = self.folder(step)
        aside = self.root / f".writing-{final.name}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._tidy()
            if final.exists():
                if self.problem(step) is None:
                    raise CheckpointError(f"checkpoint {final} exists already and is intact; it is not overwritten")
                os.rename(final, self.root / f".removing-{final.name}")
            self._write(aside, step, state, extra)
            os.rename(aside, final)
            sync(self.root)
        except (OSError, CheckpointException) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise NotWrittenError(f"checkpoint {final} could not be written: {_reason(error)}") from error
        self._verifier.written(final)
        self._reported.discard(step)
        try:
            self._prune()
        except OSError as error:  # the new checkpoint is safe; the next one tries to tidy up again
            self.report(f"old checkpoints in {self.root} could not be removed: {_reason(error)}")
        return final

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
        self._read(step, tensors)
        return _without(which, tensors)

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint stays for ever: by `keep_every` now, or when it was published."""
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

    def _read(self, step: int, tensors: dict[str, Tensor]) -> None:
        by_part: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            by_part.setdefault(part, {})[name] = tensor
        for part, own in by_part.items():
            reader = FileSystemReader(self.folder(step) / TENSORS / part)
            with _single_process_is_fine():
                load(own, storage_reader=reader, no_dist=not _distributed())

    def _write(self, folder: Path, step: int, state: dict[str, Any], extra: dict[str, Any]) -> None:
        """Every file of a checkpoint, each synced, the manifest last, then the folders themselves."""
        flat = {part: flatten(tensors, f"{part}/") for part, tensors in state.items()}
        os.mkdir(folder)
        os.mkdir(folder / TENSORS)
        for part, tensors in flat.items():
            os.mkdir(folder / TENSORS / part)
            writer = FileSystemWriter(folder / TENSORS / part, sync_files=True)
            with _single_process_is_fine():
                save(_without(part, tensors), storage_writer=writer, no_dist=not _distributed())
            sync(folder / TENSORS / part)
        milestone = {"milestone": True} if self.keep_every and step and step % self.keep_every == 0 else {}
        # In the order of the caller: that of streams and of their parts means something.
        write_durably(folder / STATE, encode({"step": step, "extra": extra, **milestone}, sort_keys=False))
        write_manifest(folder, step)
        sync(folder / TENSORS)
        sync(folder)

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


def training_state(student: nn.Module, teacher: nn.Module, optimizer: AnyOptimizer) -> dict[str, dict[str, Any]]:
    """{"student": {name: tensor}, "teacher": {name: tensor}, "optimizer": {parameter name: {slot: tensor}}}.

    The tensors are the live ones, sharded where the modules are. Hyperparameters are not part of it: they are
    functions of the configuration and the step. The optimizer's part is not made by torch's
    `get_optimizer_state_dict`: its counterpart refuses a state in which some parameters have none yet, such as the
    layers of a modality that no step has drawn so far.
    """
    state = optimizer.state
    slots = {
        name: {slot: _as_tensor(value) for slot, value in state[parameter].items()}
        for name, parameter in _optimized(student, optimizer)
        if parameter in state
    }
    return {"student": get_model_state_dict(student), "teacher": get_model_state_dict(teacher), "optimizer": slots}


@dataclass(frozen=True)
class Anew:
    """What a run does not take from its checkpoint, since its settings were changed after it.

    Attributes:
        parts: of the network, such as `projector`: those that are new or of another kind start from their initial
            weights, and those that are no longer needed are left behind.
        optimizer: its whole state, of an optimizer of another kind.
    """

    parts: tuple[str, ...] = ()
    optimizer: bool = False

    def leaves(self, key: str) -> bool:
        """Whether a key of the checkpoint, like "student/projector.linear1.weight", is not taken."""
        part, _, name = key.partition("/")
        inside = any(name == part or name.startswith((f"{part}.", f"{part}/")) for part in self.parts)
        return inside or (self.optimizer and part == "optimizer")


NOTHING_ANEW = Anew()


def restore(
    store: CheckpointStore,
    step: int,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: AnyOptimizer,
    anew: Anew = NOTHING_ANEW,
    more: Mapping[str, dict[str, Any]] = _NO_MORE,
) -> None:
    """Load what `training_state` returned, strictly except for `anew`.

    Args:
        more: further parts of the checkpoint, read in place.

    Raises CheckpointError naming each key that does not fit.
    """
    parameters = _optimized(student, optimizer)
    by_name = dict(parameters)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, item in store.stored(step).items():
        part, rest = key.split("/", 1)
        name, _, slot = rest.rpartition("/")
        if part == "optimizer" and name in by_name and not anew.leaves(key):
            parameter = by_name[name].detach()
            dtype = item.properties.dtype  # moments of one byte, and a count of steps that is no number of the weights
            if tuple(item.size) == tuple(parameter.shape):
                empty = torch.empty_like(parameter, dtype=dtype)
            else:
                empty = torch.empty(item.size, dtype=dtype, device=parameter.device)
            slots.setdefault(name, {})[slot] = empty
    weights, average = get_model_state_dict(student), get_model_state_dict(teacher)
    store.load(step, {"student": weights, "teacher": average, "optimizer": slots, **more}, anew.leaves)
    set_model_state_dict(student, weights, options=StateDictOptions(strict=True))
    set_model_state_dict(teacher, average, options=StateDictOptions(strict=True))
    for part in optimizers_of(optimizer):
        numbered = {
            index: {slot: _from_tensor(slot, value) for slot, value in slots[name].items()}
            for index, (name, _) in enumerate(_optimized(student, part))
            if name in slots
        }
        part.load_state_dict({"state": numbered, "param_groups": part.state_dict()["param_groups"]})


def _as_tensor(value: Tensor | int) -> Tensor:
    """bitsandbytes counts its steps with Python's numbers."""
    return torch.tensor(value) if isinstance(value, int) else value


def _from_tensor(slot: str, value: Tensor) -> Tensor | int:
    """The inverse: torch's own optimizers count in floats, so that a whole number is one of Python's."""
    return int(value) if slot == "step" and not value.is_floating_point() else value


def _optimized(model: nn.Module, optimizer: AnyOptimizer) -> list[tuple[str, nn.Parameter]]:
    """The optimizer's parameters, in its order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter not in names for parameter in parameters):
        raise CheckpointError("the optimizer holds a parameter that is not one of the student's")
    return [(names[parameter], parameter) for parameter in parameters]


def _without(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part by their names within it."""
    return {key.removeprefix(f"{part}/"): tensor for key, tensor in tensors.items()}


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _single_process_is_fine() -> Generator[None, None, None]:
    """Without torch's warning that nothing is distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: BaseException) -> str:
    """The failure inside torch's wrapper, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
