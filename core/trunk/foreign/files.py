"""Weight files: tensors by name, read without running any code in the file, and written whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import CheckpointError
from core.trunk.foreign.prefixes import strip_prefixes

WRAPPERS = ("ema", "ema_model", "model", "state_dict", "module")  # in order of preference: the EMA is evaluated
MEANING = "selfflow"  # where a file of ours says what its weights mean: JSON, in the metadata or beside the weights
PICKLED = (".pt", ".pth", ".ckpt")
_SHOWN = 5


@dataclass(frozen=True)
class WeightFile:
    """
    Attributes:
        source: the file, and what in it, for messages.
        state: tensors by name.
        arguments: of the training that wrote the file, where it tells them.
        meaning: what a file of this project says of its weights, besides names and shapes; {} where it says nothing.
        notes: what was done to the names, a line each.
    """

    source: str
    state: dict[str, Tensor]
    arguments: dict[str, object] = field(default_factory=dict)
    meaning: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_file(path: Path | str) -> WeightFile:
    """The tensors of a `.safetensors` file, or of a `.pt`/`.pth`/`.ckpt` file.

    Pickled files are read with torch's restricted unpickler. Beside tensors and plain containers it is allowed
    `argparse.Namespace`, a bag of values in which SiT, REPA and SRA store their training arguments. A state dict
    inside one of `WRAPPERS`, and names with prefixes of wrapping classes (prefixes.py), are unwrapped.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                said = (file.metadata() or {}).get(MEANING)
            return _unwrap(load_file(path), str(path), {}, _meaning(said, path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path}: quantised weights (GGUF); needed are those in bfloat16 or float32")
    if path.suffix not in PICKLED:
        raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; allowed are .safetensors, {', '.join(PICKLED)}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, so that the state of an optimizer, twice the size of the weights, is never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged, or holds more than plain tensors ({_reason(error)})") from error
    arguments = content.get("args") if isinstance(content, dict) else None
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    meaning = _meaning(content.get(MEANING) if isinstance(content, dict) else None, path)
    return _unwrap(content, str(path), arguments, meaning)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of `read_file` alone."""
    return read_file(path).state


def write_file(
    state: dict[str, Tensor], path: Path | str, wrapper: str | None = None, meaning: dict[str, Any] | None = None
) -> None:
    """Write tensors by name to a new `.safetensors` or `.pt` file; a killed process leaves nothing under its name.

    Args:
        wrapper: of a `.pt` file, the name that the state dict lies under; None for a plain state dict.
        meaning: plain data (JSON) for `WeightFile.meaning`; a plain state dict in a `.pt` file has no place for it.

    Raises:
        CheckpointError: the kind is unknown, the file exists, or it cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; allowed are .safetensors and .pt")
    if path.exists():
        raise CheckpointError(f"{path} exists already and is not overwritten")
    # A copy each: views of one storage would be written together, and safetensors refuses them.
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    text = {} if meaning is None else {MEANING: json.dumps(meaning, sort_keys=True)}
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(state, aside, metadata=text or {"format": "pt"})  # one key: the order of several is not fixed
        else:
            torch.save({wrapper: state, **text} if wrapper else state, aside)
        os.replace(aside, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's zip writer raises RuntimeError on a full disk
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {_reason(error)}") from error


def some(names: list[str]) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _unwrap(content: object, source: str, arguments: dict[str, object], meaning: dict[str, Any]) -> WeightFile:
    if isinstance(content, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is not None:
            return _unwrap(content[wrapper], f"{source}[{wrapper}]", arguments, meaning)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            state, notes = strip_prefixes({str(name): value for name, value in content.items()}, source)
            return WeightFile(source, state, arguments, meaning, notes)
    found = f"a dict with {list(content)[:_SHOWN]}" if isinstance(content, dict) else type(content).__name__
    raise CheckpointError(f"{source}: no tensors by name here or under {', '.join(WRAPPERS)}; found {found}")


def _meaning(text: Any, path: Path) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: what it says of its weights ({MEANING}) is damaged: {error}") from error
    raise CheckpointError(f"{path}: what it says of its weights ({MEANING}) is damaged: it is a {type(found).__name__}")


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
