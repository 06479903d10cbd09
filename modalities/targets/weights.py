"""Reading an encoder's folder (or hub name) with the transformers library, and refusing weights that do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from autoencoders.diffusers_weights import HUB_NAME
from core.errors import CheckpointError, ConfigError, first_line
from core.optional import need


@dataclass(frozen=True)
class Role:
    """How messages speak of an encoder: its section in the configuration, its files, and what works without it."""

    key: str
    files: str
    without: str


ALIGNMENT = Role(
    "encoder",
    "config.json, model.safetensors and preprocessor_config.json",
    "Every alignment but the external one works",
)


@dataclass(frozen=True)
class Folder:
    """A model as `save_pretrained` writes it, local or on the hub.

    Attributes:
        path: the folder, or the name on the hub.
        settings: of config.json.
        preprocessor: of preprocessor_config.json or video_preprocessor_config.json; empty where there is none.
        role: what the model is for.
    """

    path: str
    settings: dict[str, Any]
    preprocessor: dict[str, Any]
    role: Role = ALIGNMENT


def open_folder(kind: str, path: str, example: str, role: Role = ALIGNMENT) -> Folder:
    """Read the two small JSON files of a model.

    Args:
        example: a published model of the kind, for messages.
        role: for messages.

    Raises:
        ConfigError: transformers is not installed, or there is no model there.
        CheckpointError: a file is not JSON.
    """
    _import_transformers(kind, role)
    try:
        settings = _read_json(path, "config.json")
    except OSError as error:
        raise ConfigError(missing(kind, path, example, error, role)) from error
    preprocessor: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        try:
            preprocessor = _read_json(path, name)
            break
        except OSError:  # optional: the family's published constants take its place
            continue
    return Folder(path, settings, preprocessor, role)


def load_network(
    kind: str,
    folder: Folder,
    class_name: str,
    example: str,
    unused: Sequence[str] = (),
    config: Any = None,
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, object] = MappingProxyType({}),
) -> nn.Module:
    """The network of a transformers class, every tensor of it from the weight file.

    Args:
        unused: beginnings of the names of tensors in the file that the class has no use for (a text tower, a head).
        config: replaces the folder's config.json.
        dtype: of the network's weights.
        options: further arguments of the class.

    Raises:
        ConfigError: no transformers with such a class, or no weights there.
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    transformers = _import_transformers(kind, folder.role)
    if not hasattr(transformers, class_name):
        raise ConfigError(
            f"{folder.role.key}.kind: {kind!r} needs transformers 4.57 or newer; {transformers.__version__} has no "
            f"{class_name}"
        )
    given = {} if config is None else {"config": config}
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # its table of unused tensors is checked below
    try:
        network, report = getattr(transformers, class_name).from_pretrained(
            folder.path, dtype=dtype, output_loading_info=True, **given, **options
        )
    except OSError as error:
        raise ConfigError(missing(kind, folder.path, example, error, folder.role)) from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder.path}: damaged weights: {first_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder.path}: these weights do not fit a {class_name}: {first_line(error)}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    wrong = []
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(key) for key in report.get(what, ()))
        if what == "unexpected_keys":
            names = [name for name in names if not name.startswith(tuple(unused))]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            wrong.append(f"{what.replace('_', ' ')}: {', '.join(names[:3])}{more}")
    if wrong:
        raise CheckpointError(f"{folder.path}: these weights do not fit a {class_name}: {'; '.join(wrong)}")
    return network


def missing(kind: str, path: str, example: str, error: Exception, role: Role = ALIGNMENT) -> str:
    return (
        f"{role.key}.path: {path!r} cannot be read: {first_line(error)}. Kind {kind!r} needs a folder with "
        f"{role.files}, as published for {example}, or that name where the Hugging Face hub can be reached. "
        f"{role.without} without it"
    )


def find_file(path: str, name: str) -> str:
    """Where a file of a folder, or of a name on the hub, lies. Raises OSError where it cannot be had."""
    if Path(path).is_dir():
        file = Path(path) / name
        if not file.is_file():
            raise FileNotFoundError(f"there is no {name}")
        return str(file)
    if not HUB_NAME.fullmatch(path):  # not worth asking the hub, which is retried for half a minute without a network
        raise FileNotFoundError("there is no such folder")
    # Documented there, and lazily exported, which a type checker does not see.
    from transformers.utils import cached_file  # pyright: ignore[reportPrivateImportUsage]

    found = cached_file(path, name)
    assert found is not None  # it raises instead
    return found


def _import_transformers(kind: str, role: Role) -> Any:
    return need("transformers", f"{role.key}.kind: {kind!r}", role.without)


def _read_json(path: str, name: str) -> dict[str, Any]:
    file = find_file(path, name)
    try:
        with open(file, encoding="utf-8") as text:
            values = json.load(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name} is not JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: {name} must hold an object, got {type(values).__name__}")
    return values
