"""Copying weights into a trunk: every name, shape and dtype agrees and every number is finite, or nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.errors import CheckpointError, nearest
from core.trunk.foreign.files import some


def load_strictly(trunk: nn.Module, state: dict[str, Tensor], source: str, fresh: Sequence[str] = ()) -> None:
    """Copy `state` into `trunk`; every name and shape has to agree, the dtype has to be that of the trunk, and every
    number has to be finite.

    Args:
        fresh: parts of the trunk that `state` lacks and that keep the values they have, see `part_names`.

    Raises:
        CheckpointError: with the first few of the missing, unexpected and mis-shaped names. Nothing was copied.
    """
    own = trunk.state_dict()
    kept = part_names(own, fresh, "the trunk")
    known = {name: value for name, value in state.items() if name in own}
    misfit = {
        name: f"{name} {tuple(value.shape)} {value.dtype}, expected {tuple(own[name].shape)} {own[name].dtype}"
        for name, value in known.items()
        if value.shape != own[name].shape or value.dtype != own[name].dtype
    }
    other_type = [name for name in misfit if known[name].shape == own[name].shape]
    problems = {
        "missing": [name for name in own if name not in state and name not in kept],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": [line for name, line in misfit.items() if name not in other_type],
        "of another type": [misfit[name] for name in other_type],
        "asked to be fresh, but here": [name for name in state if name in kept],
    }
    if any(problems.values()):
        lines = [f"  {len(names)} {kind}: {some(names)}" for kind, names in problems.items() if names]
        if any(known[name].is_floating_point() for name in other_type):
            lines.append("  --cast converts numbers of another type, with what rounding has already cost them")
        raise CheckpointError("\n".join([f"{source} does not fit this trunk:", *lines]))
    if broken := not_finite(state):
        raise CheckpointError(f"{source} holds weights that are NaN or infinite: {some(broken)}")
    trunk.load_state_dict({**{name: own[name] for name in kept}, **state}, strict=True)


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """A line for every tensor with NaN or infinite numbers, and how many there are."""
    counts = {name: int((~value.isfinite()).sum()) for name, value in state.items() if value.is_floating_point()}
    return [f"{name} ({count} of {state[name].numel()})" for name, count in counts.items() if count]


def cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """All floating-point tensors in one type; integers stay."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def without(state: dict[str, Tensor], parts: Sequence[str], owner: str) -> dict[str, Tensor]:
    """`state` without the names of `parts`. Raises CheckpointError for a part that `owner` does not have."""
    dropped = part_names(state, parts, owner)
    return {name: value for name, value in state.items() if name not in dropped}


def part_names(names: Sequence[str] | dict[str, Tensor], parts: Sequence[str], owner: str) -> set[str]:
    """The names that are one of `parts` or lie in it: `projector` is `projector.linear1.weight`, not `projectors.0`.

    Raises:
        CheckpointError: a part without any name.
    """
    found: set[str] = set()
    for part in parts:
        inside = {name for name in names if name == part or name.startswith(f"{part}.")}
        if not inside:
            parts_here = dict.fromkeys(name.split(".")[0] for name in names)
            raise CheckpointError(
                f"{part!r} is no part of {owner}, which has {', '.join(parts_here)}.{nearest(part, parts_here)}"
            )
        found |= inside
    return found
