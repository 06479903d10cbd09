"""Weight files: tensors by name, read without running any code in the file, and written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import CheckpointError

WRAPPERS = ("ema", "ema_model", "model", "state_dict")  # in order of preference: the EMA is what is evaluated
PICKLED = (".pt", ".pth", ".ckpt")
_SHOWN = 5


@dataclass(frozen=True)
class WeightFile:
    """
    Attributes:
        source: the file, and what in it, for messages.
        state: tensors by name.
        arguments: of the training that wrote the file, where it tells them.
    """

    source: str
    state: dict[str, Tensor]
    arguments: dict[str, object] = field(default_factory=dict)


def read_file(path: Path | str) -> WeightFile:
    """The tensors of a `.safetensors` file, or of a `.pt`/`.pth`/`.ckpt` file.

    Pickled files are read with torch's restricted unpickler. Beside tensors and plain containers it is allowed
    `argparse.Namespace`, a bag of values in which SiT, REPA and SRA store their training arguments. A state dict
    inside one of `WRAPPERS`, and names that start with "module.", are unwrapped.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return _unwrap(load_file(path), str(path), {})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error
    if path.suffix not in PICKLED:
        raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; allowed are .safetensors, {', '.join(PICKLED)}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, so that the state of an optimizer, twice the size of the weights, is never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged, or holds more than plain tensors ({_reason(error)})") from error
    arguments = content.get("args") if isinstance(content, dict) else None
    return _unwrap(content, str(path), vars(arguments) if isinstance(arguments, argparse.Namespace) else {})


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of `read_file` alone."""
    return read_file(path).state


def write_file(state: dict[str, Tensor], path: Path | str, wrapper: str | None = None) -> None:
    """Write tensors by name to a new `.safetensors` or `.pt` file; a killed process leaves nothing under its name.

    Args:
        wrapper: of a `.pt` file, the name that the state dict lies under; None for a plain state dict.

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
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(state, aside, metadata={"format": "pt"})
        else:
            torch.save({wrapper: state} if wrapper else state, aside)
        os.replace(aside, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's zip writer raises RuntimeError on a full disk
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {_reason(error)}") from error


def some(names: list[str]) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _unwrap(content: object, source: str, arguments: dict[str, object]) -> WeightFile:
    if isinstance(content, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is not None:
            return _unwrap(content[wrapper], f"{source}[{wrapper}]", arguments)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            state = {str(name).removeprefix("module."): value for name, value in content.items()}
            return WeightFile(source, state, arguments)
    found = f"a dict with {list(content)[:_SHOWN]}" if isinstance(content, dict) else type(content).__name__
    raise CheckpointError(f"{source}: no tensors by name here or under {', '.join(WRAPPERS)}; found {found}")


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
