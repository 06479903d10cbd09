"""Weight files as the authors of a network publish them, read strictly into the same network of diffusers.

Reading goes from the network's tensors to the file's: each must be there, in its shape, and nothing may be left over.
Names in messages are those of the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.diffusers_weights import Constants, diffusers_class, read_diffusers, refuse_others
from core.errors import CheckpointError, first_line

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How the authors name the tensors of one network, and what their file says of its size.

    Attributes:
        files: the published names of the file, to find it in a folder.
        class_name: of diffusers.
        settings: the file's tensors -> arguments of that class; a KeyError names a tensor that is not there.
        name: (a tensor of that class, those arguments) -> its name in the file.
        prefix: of the network's tensors, where the file holds more than them; the others are then not read.
        ignored: tensors of the training that may accompany the network's, by the beginning of their names.
    """

    files: tuple[str, ...]
    class_name: str
    settings: Callable[[State], dict[str, Any]]
    name: Callable[[str, dict[str, Any]], str]
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def read_network(kind: str, path: str, layout: Layout, constants: Callable[[Any], Constants]) -> nn.Module:
    """The network in float32 from `path`: a published file, a folder with one, or as `read_diffusers` takes it.

    A folder that holds both layouts (as the publishers' own on the hub do) is read as diffusers' one.

    Raises:
        ConfigError: nothing to read there, no diffusers, or other constants.
        CheckpointError: a file that is damaged, or does not have exactly the network's tensors.
    """
    file = find_file(path, layout.files)
    if file is None:
        other = f"or a published file or a folder with it: {', '.join(layout.files)}"
        return read_diffusers(kind, path, layout.class_name, constants, other)
    network = network_from(kind, str(file), load_tensors(file), layout)
    refuse_others(kind, str(file), constants(network.config))
    return network


def find_file(path: str, names: tuple[str, ...]) -> Path | None:
    """`path` if it is a file, or the first of `names` in it if it is a folder without a config.json of diffusers."""
    place = Path(path)
    if place.is_file():
        return place
    if any((place / part / "config.json").is_file() for part in ("", "vae")):
        return None
    return next((place / name for name in names if (place / name).is_file()), None)


def load_tensors(file: Path) -> State:
    """The tensors of a .safetensors file, or of one that torch saved (inside `state_dict`, if there is one).

    Raises:
        CheckpointError: damaged, or a pickle that holds more than tensors, numbers and text: it is not run.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds more than tensors, which is not read, or is damaged: {first_line(error)}. A .safetensors "
            "file of the same weights is read"
        ) from error
    except Exception as error:  # safetensors has a class of its own; torch raises what its zip and pickle readers do
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: expected named tensors, or such under the name state_dict")
    return state


def network_from(kind: str, file: str, state: State, layout: Layout) -> nn.Module:
    """The network of diffusers with the tensors of a file in its authors' layout.

    Args:
        file: for messages.

    Raises:
        CheckpointError: tensors that are missing, left over or of another shape; three of each are named.
    """
    if layout.prefix and any(name.startswith(layout.prefix) for name in state):
        state = {
            name.removeprefix(layout.prefix): value for name, value in state.items() if name.startswith(layout.prefix)
        }
    left = {name: value for name, value in state.items() if not name.startswith(layout.ignored)}
    what = f"{file}: not the weights of kind {kind!r} in its authors' layout"
    try:
        settings = layout.settings(left)
    except KeyError as error:
        hint = f"no tensor {error.args[0]}; a file of diffusers is read as its folder, with config.json"
        raise CheckpointError(f"{what}: {hint}") from error
    try:
        with torch.device("meta"):
            network = diffusers_class(kind, layout.class_name)(**settings)
    except (ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise CheckpointError(f"{what}: its sizes {settings} fit no such network: {first_line(error)}") from error
    missing, shapes, found = [], [], {}
    for name, empty in network.state_dict().items():
        theirs = layout.name(name, settings)
        value = left.pop(theirs, None)
        if value is None:
            missing.append(theirs)
        elif value.shape not in _accepted(empty.shape):
            shapes.append(f"{theirs} {tuple(value.shape)} for {tuple(empty.shape)}")
        else:
            found[name] = value.reshape(empty.shape).to(empty.dtype)
    wrong = {"missing": missing, "not of the network": sorted(left), "of another shape": shapes}
    if any(wrong.values()):
        details = "; ".join(f"{problem}: {', '.join(names[:3])}" for problem, names in wrong.items() if names)
        raise CheckpointError(f"{what}: tensors {details}")
    network.load_state_dict(found, assign=True)
    return network


def _accepted(shape: torch.Size) -> tuple[torch.Size, ...]:
    """A matrix of diffusers may be a convolution of one pixel at its authors'."""
    return (shape, torch.Size((*shape, 1, 1))) if len(shape) == 2 else (shape,)


def count(state: State, prefix: str) -> int:
    """How many parts (0, 1, 2, ...) of a list of modules lie in the tensors. Raises KeyError when there are none."""
    parts = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    if not parts:
        raise KeyError(f"{prefix}0")
    return len(parts)
