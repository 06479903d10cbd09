"""Networks of the diffusers library, from a folder or from the hub, with everything about them checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import CheckpointError, ConfigError, first_line
from core.optional import need

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
Constants = dict[str, tuple[Any, Any]]  # what the kind is -> (what the weights are, what they must be)


def read_diffusers(
    kind: str, path: str, class_name: str, constants: Callable[[Any], Constants], other_layout: str = ""
) -> nn.Module:
    """The network of a diffusers class in float32, from `path` itself or from the folder `vae` in it.

    Args:
        kind: of the configuration, for messages.
        path: a local folder as `save_pretrained` writes it, or a name on the Hugging Face hub.
        constants: the network's config -> values that must be equal in each pair.
        other_layout: what else `path` may hold, for messages.

    Raises:
        ConfigError: no diffusers, no weights there or unreadable ones, another class, or other constants.
        CheckpointError: the weights file does not have exactly the network's tensors.
    """
    cls = diffusers_class(kind, class_name)
    subfolder, config = _find_config(kind, path, cls, other_layout)
    if config.get("_class_name") != class_name:
        other = config.get("_class_name") or f"a model of type {config.get('model_type')!r}"
        raise ConfigError(f"autoencoder.path: {path!r} holds {other}, kind {kind!r} needs {class_name}")
    where = f"{path}/{subfolder}" if subfolder else path
    try:
        network, report = cls.from_pretrained(
            path, subfolder=subfolder, torch_dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise ConfigError(_missing(kind, path, f"cannot be read: {first_line(error)}", other_layout)) from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where}: these weights do not fit {class_name}: {first_line(error)}") from error
    refuse_others(kind, path, constants(network.config))
    wrong = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(name)}
    if wrong:
        details = "; ".join(
            f"{name.replace('_', ' ')}: {', '.join(map(str, list(keys)[:3]))}" for name, keys in wrong.items()
        )
        raise CheckpointError(f"{where}: these weights do not fit {class_name}: {details}")
    return network


def refuse_others(kind: str, path: str, constants: Constants) -> None:
    """Raise a ConfigError with a line for every constant that is not as the kind has it."""
    wrong = [
        f"autoencoder.path: {path!r} has {name} {seen!r}, kind {kind!r} needs {wanted!r}"
        for name, (seen, wanted) in constants.items()
        if seen != wanted
    ]
    if wrong:
        raise ConfigError(wrong)


def diffusers_class(kind: str, name: str) -> Any:
    """A class of the diffusers library. Raises ConfigError where it is not installed or too old."""
    without = "The kinds pixels, space_time_pixels and mdct work"
    diffusers = need("diffusers", f"autoencoder.kind: {kind!r}", without)
    try:
        return getattr(diffusers, name)
    except (ImportError, AttributeError, RuntimeError) as error:  # it imports its parts when they are asked for
        raise ConfigError(
            f"autoencoder.kind: {kind!r} needs {name} of diffusers 0.37 or newer, with transformers: "
            f"{first_line(error)}. {without} without it"
        ) from error


def _find_config(kind: str, path: str, cls: Any, other_layout: str) -> tuple[str | None, dict[str, Any]]:
    """Where in `path` the config.json of an autoencoder lies, and what is in it."""
    local = Path(path).is_dir()
    if not path or not (local or HUB_NAME.fullmatch(path)):
        raise ConfigError(_missing(kind, path, "is not a folder", other_layout))
    found = f"holds no config.json of {cls.__name__}"
    for subfolder in (None, "vae"):
        if local and not (Path(path) / (subfolder or "") / "config.json").is_file():
            continue
        try:
            config = cls.load_config(path, subfolder=subfolder)
        except OSError as error:
            found = f"cannot be read: {first_line(error)}"
            continue
        return subfolder, config
    raise ConfigError(_missing(kind, path, found, other_layout))


def _missing(kind: str, path: str, found: str, other_layout: str) -> str:
    return (
        f"autoencoder.path: {path!r} {found}. Kind {kind!r} needs a folder with config.json and "
        "diffusion_pytorch_model.safetensors (or one with such a folder named vae), as diffusers saves it, or its name "
        f"on the Hugging Face hub{', ' * bool(other_layout)}{other_layout}"
    )
