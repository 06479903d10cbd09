"""What is kept of a step in which something went wrong: values and sample keys of every process, and its batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from core.training.loader import Raw


@dataclass(frozen=True)
class Share:
    """What one process had of a step: keys of its samples, and its metrics before they were summed over all."""

    keys: tuple[str, ...]
    values: dict[str, float | str]


def describe_step(step: int, stream: str, values: Mapping[str, float | str], ranks: Sequence[Share]) -> dict[str, Any]:
    """Plain data about a step, in which NaN and infinity, which are no JSON, are text.

    Args:
        step: number of finished steps; the draws of the next, which is meant, are a function of this number.
        values: its metrics.
        ranks: of every process; told apart where there are several.
    """
    keys = [key for share in ranks for key in share.keys]
    content: dict[str, Any] = {"step": step, "stream": stream, "keys": keys, "values": _text(values)}
    if len(ranks) > 1:
        content["ranks"] = [{"keys": list(share.keys), "values": _text(share.values)} for share in ranks]
    return content


def _text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def save_batch(folder: Path, name: str, microbatches: Sequence[Raw]) -> Path:
    """Every tensor of the microbatches, by its place in them, as a safetensors file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in named_tensors(list(microbatches))}
    path, aside = folder / f"{name}.safetensors", folder / f".{name}.writing"
    save_file(copies, aside)
    os.replace(aside, path)
    return path


def named_tensors(item: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of everything inside nested dataclasses, sequences and dicts."""
    if isinstance(item, Tensor):
        yield name, item
        return
    children: Sequence[tuple[Any, Any]] = ()
    if is_dataclass(item) and not isinstance(item, type):
        children = [(field.name, getattr(item, field.name)) for field in fields(item)]
    elif isinstance(item, dict):
        children = list(item.items())
    elif isinstance(item, list | tuple):
        children = list(enumerate(item))
    for key, child in children:
        yield from named_tensors(child, f"{name}.{key}" if name else str(key))
