"""Between other projects' weights and ours: pure functions from state dict to state dict, each with its inverse.

Ours know a time with noise at 1, embed 1 - t, read patches with a linear layer over (c p1 p2) and negate the head's
output (core/trunk/sit.py), as the released Self-Flow weights want it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from core.errors import CheckpointError

PATCH, HEAD, TIME = "x_embedder.proj.weight", "final_layer.linear", "t_embedder.mlp.0.weight"
State = dict[str, Tensor]


def flatten_patches(state: State) -> State:
    """The convolution over patches (D, c, p, p) -> a linear layer (D, c p p)."""
    return {**state, PATCH: state[PATCH].flatten(1)}


def unflatten_patches(state: State, patch: int) -> State:
    """The inverse of `flatten_patches`."""
    return {**state, PATCH: state[PATCH].unflatten(1, (-1, patch, patch))}


def turn_time(state: State) -> State:
    """Weights that embed t and predict +v <-> weights that embed 1 - t and predict -v; its own inverse.

    The sign goes into the head. The time goes into the embedder's first layer, exactly: with w a frequency and
    u = 1 - t, cos(w t) = cos(w) cos(w u) + sin(w) sin(w u) and sin(w t) = sin(w) cos(w u) - cos(w) sin(w u), so the
    features [cos, sin] of t are a reflection of those of 1 - t. Computed in float64; there and back is the same to
    the rounding of this one tensor.
    """
    weight = state[TIME]
    half = weight.shape[1] // 2
    # The frequencies as every SiT has them, in float32.
    w = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / half).double()
    cos, sin = weight.double().split(half, dim=1)  # (D, half) each
    turned = torch.cat([cos * w.cos() + sin * w.sin(), cos * w.sin() - sin * w.cos()], dim=1)
    head = {f"{HEAD}.{name}": -state[f"{HEAD}.{name}"] for name in ("weight", "bias")}
    return {**state, **head, TIME: turned.to(weight.dtype)}


def rename(state: State, prefixes: Mapping[str, str]) -> State:
    """Every name that starts with a key of `prefixes` starts with its value instead."""
    return {_renamed(name, prefixes): value for name, value in state.items()}


def name_projectors(state: State, names: Sequence[str]) -> State:
    """REPA's `projectors.0`, `projectors.1` ... -> `projectors.NAME`.

    Raises:
        CheckpointError: there are more or fewer of them than names.
    """
    found = sorted({name.split(".")[1] for name in state if name.startswith("projectors.")}, key=lambda n: (len(n), n))
    if found != [str(number) for number in range(len(names))]:
        raise CheckpointError(
            f"the file has projectors {', '.join(found) or 'none'}, the trunk has {', '.join(names) or 'none'}; "
            "name them in their order, or drop `projectors`"
        )
    return rename(state, {f"projectors.{number}.": f"projectors.{name}." for number, name in enumerate(names)})


def number_projectors(state: State, names: Sequence[str]) -> State:
    """The inverse of `name_projectors`."""
    found = {name.split(".")[1] for name in state if name.startswith("projectors.")}
    if found != set(names):
        raise CheckpointError(f"projectors: the trunk has {', '.join(sorted(found))}, named were {', '.join(names)}")
    return rename(state, {f"projectors.{name}.": f"projectors.{number}." for number, name in enumerate(names)})


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(prefix, "") + name.removeprefix(prefix)
