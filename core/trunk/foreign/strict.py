"""Copying weights into a trunk: every name, shape and dtype agrees, or nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from core.errors import CheckpointError, nearest
from core.trunk.foreign.files import some


def load_strictly(trunk: nn.Module, state: dict[str, Tensor], source: str, fresh: Sequence[str] = ()) -> None:
    """Copy `state` into `trunk`; every name and shape has to agree, and the dtype has to be that of the trunk.

    Args:
        fresh: parts of the trunk that `state` lacks and that keep the values they have, see `part_names`.

    Raises:
        CheckpointError: with the first few of the missing, unexpected and mis-shaped names. Nothing was copied.
    """
    own = trunk.state_dict()
    kept = part_names(own, fresh, "the trunk")
    misfit = [
        f"{name} {tuple(value.shape)} {value.dtype}, expected {tuple(own[name].shape)} {own[name].dtype}"
        for name, value in state.items()
        if name in own and (value.shape != own[name].shape or value.dtype != own[name].dtype)
    ]
    problems = {
        "missing": [name for name in own if name not in state and name not in kept],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": misfit,
        "asked to be fresh, but here": [name for name in state if name in kept],
    }
    if any(problems.values()):
        lines = [f"  {len(names)} {kind}: {some(names)}" for kind, names in problems.items() if names]
        raise CheckpointError("\n".join([f"{source} does not fit this trunk:", *lines]))
    trunk.load_state_dict({**{name: own[name] for name in kept}, **state}, strict=True)


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
