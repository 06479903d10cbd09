"""Weights from elsewhere into a network that is built: by name and shape, all of it or nothing.

What may differ is named first, by patterns: `drop` are tensors of the source that are not taken, `fresh` tensors of
the network that the source need not have and that keep their initial values. A pattern is a name, a part of the network
(`projector` is all of `projector.*`), or a name with `*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from core.errors import CheckpointError, nearest

_SHOWN = 8


@dataclass(frozen=True)
class Initialized:
    """Names of the tensors that were copied, that kept their initial values, and that were left in the source."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def initialize(
    model: nn.Module, state: Mapping[str, Tensor], source: str, drop: Sequence[str] = (), fresh: Sequence[str] = ()
) -> Initialized:
    """Copy `state` into `model`.

    Args:
        source: what it comes from, for messages.
        drop, fresh: patterns, see above. A name that matches both starts from scratch.

    Raises:
        CheckpointError: a name, shape or dtype that is not excepted differs, a value is not finite, or a pattern fits
            nothing. Nothing was copied.
    """
    own = model.state_dict()
    dropped = matching(state, drop, f"--init-drop: {source}")
    kept = matching(own, fresh, "--init-fresh: the network")
    taken = {name: value for name, value in state.items() if name not in dropped}
    problems = _problems(own, taken, kept)
    if problems:
        raise CheckpointError("\n".join([f"{source} does not fit this network:", *(f"  {line}" for line in problems)]))
    model.load_state_dict({**own, **taken})
    names = tuple(name for name in own if name not in taken)
    return Initialized(tuple(taken), names, tuple(name for name in state if name in dropped))


def matching(names: Iterable[str], patterns: Sequence[str], owner: str) -> set[str]:
    """The names that a pattern fits. Raises CheckpointError for a pattern that fits none."""
    names, found = list(names), set()
    for pattern in patterns:
        found_here = {name for name in names if fitting(name, pattern)}
        if not found_here:
            parts = dict.fromkeys(part for name in names for part in (name, name.split(".")[0]))
            shown = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise CheckpointError(f"{owner} has nothing like {pattern!r}; it has {shown}.{nearest(pattern, parts)}")
        found |= found_here
    return found


def fitting(name: str, pattern: str) -> bool:
    """Whether a pattern is the name, a part of the network that it lies in, or fits it with `*`."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _problems(own: Mapping[str, Tensor], taken: Mapping[str, Tensor], kept: set[str]) -> list[str]:
    missing = [name for name in own if name not in taken and name not in kept]
    surplus = [name for name in taken if name not in own]
    misfit = [
        f"{name} {tuple(value.shape)} {_dtype(value)}, here {tuple(own[name].shape)} {_dtype(own[name])}"
        for name, value in taken.items()
        if name in own and (value.shape != own[name].shape or value.dtype != own[name].dtype)
    ]
    both = [name for name in taken if name in kept]
    infinite = [name for name, value in taken.items() if value.is_floating_point() and not value.isfinite().all()]
    return [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing in it (--init-fresh keeps the initial values of such)", missing),
            ("not of this network (--init-drop leaves such out)", surplus),
            ("of another shape or type (--init-drop with --init-fresh starts such anew)", misfit),
            ("asked to be fresh, but there (--init-drop leaves them out)", both),
            ("with NaN or infinity", infinite),
        )
        if names
    ]


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
