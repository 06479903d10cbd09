"""Foreign weights into a trunk that is built, and a trunk's weights into a foreign file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.errors import CheckpointError, choose
from core.trunk.foreign.files import WeightFile, some, write_file
from core.trunk.foreign.kinds import KINDS, check_arguments, check_kind, detect
from core.trunk.foreign.sit import misfit_settings
from core.trunk.foreign.strict import cast as cast_floats
from core.trunk.foreign.strict import load_strictly, not_finite, without
from core.trunk.sit import SiT


def import_weights(
    trunk: nn.Module,
    file: WeightFile,
    kind: str | None = None,
    drop: Sequence[str] = (),
    fresh: Sequence[str] = (),
    projectors: Sequence[str] | None = None,
    cast: bool = False,
) -> str:
    """Copy a file's weights into `trunk`, all or none of them.

    Args:
        kind: a name of `KINDS`; detected unless given.
        drop: parts of the file, by its own names, that are left out, such as `projectors`.
        fresh: parts of the trunk that the file lacks and that keep their initial weights, such as `projector`.
        projectors: the trunk's names for REPA's `projectors.0`, `projectors.1` ...; its own order unless given.
        cast: convert floating-point numbers of another type than the trunk's instead of refusing them.

    Returns:
        The kind of the file.

    Raises:
        CheckpointError: the file is of no kind or of another kind, anything in it does not fit, or numbers are not
            finite. Nothing was copied.
    """
    name = kind or detect(file.state, file.source)
    reader = check_kind(name, file.state, file.source)
    check_arguments(reader, file.arguments, file.source)
    _check_trunk(name, trunk)
    state = without(file.state, drop, file.source)
    if cast:  # before conversions, which compute
        state = cast_floats(state, next(trunk.parameters()).dtype)
    state = reader.read(state, _names(trunk, projectors) if "projectors" not in drop else [], trunk)
    try:
        load_strictly(trunk, state, f"{file.source} (kind {name})", [*fresh, *reader.absent])
    except CheckpointError as error:
        settings = misfit_settings(state, trunk.config) if isinstance(trunk, SiT) else []
        if not settings:
            raise
        raise CheckpointError(f"{error}\n  settings of this trunk (trunk.sit): {'; '.join(settings)}") from error
    return name


def export_weights(
    trunk: nn.Module,
    state: dict[str, Tensor],
    path: Path | str,
    kind: str,
    drop: Sequence[str] = (),
    projectors: Sequence[str] | None = None,
    meaning: dict[str, Any] | None = None,
) -> None:
    """Write weights of a trunk to a new `.safetensors` or `.pt` file; what `import_weights` reads back.

    Args:
        trunk: gives the shape; its own weights are not looked at.
        state: the weights, under its names.
        kind: a name of `KINDS`.
        drop: parts of the trunk that are left out, such as `projector`.
        projectors: the order in which REPA numbers the trunk's projectors; their own unless given.
        meaning: see `write_file`; left out of a `.pt` file of a kind that has no place for it, see `holds_meaning`.

    Raises:
        ConfigError: there is no such kind.
        CheckpointError: the kind cannot hold these weights, with the reasons; they are not finite; or the file cannot
            be written.
    """
    writer = choose("kind", kind, KINDS)
    state = without(state, drop, "the trunk")
    _check_trunk(kind, trunk)
    written = writer.write(state, _names(trunk, projectors), trunk)
    if found := writer.misfits(written):
        raise CheckpointError(f"kind {kind!r} ({writer.about}) cannot hold these weights: {some(found)}")
    if broken := not_finite(written):
        raise CheckpointError(f"weights that are NaN or infinite are not exported: {some(broken)}")
    native = "state_dict" if meaning is not None and kind.startswith("native-") else None
    write_file(written, path, writer.wrapper or native, meaning)


def holds_meaning(kind: str, path: Path | str) -> bool:
    """Whether a file of this kind and suffix has a place for what its weights mean."""
    return Path(path).suffix == ".safetensors" or kind.startswith("native-") or KINDS[kind].wrapper is not None


def _check_trunk(kind: str, trunk: nn.Module) -> None:
    wanted, found = KINDS[kind].trunk, type(trunk)
    if not issubclass(found, wanted):
        fitting = ", ".join(name for name, other in KINDS.items() if issubclass(found, other.trunk))
        raise CheckpointError(
            f"kind {kind!r} ({KINDS[kind].about}) holds a {wanted.__name__}, and the trunk is a {found.__name__}; "
            f"kinds that hold one: {fitting or 'none'}"
        )


def _names(trunk: nn.Module, projectors: Sequence[str] | None) -> list[str]:
    if projectors is not None:
        return list(projectors)
    own = trunk.get_submodule("projectors")
    assert isinstance(own, nn.ModuleDict)  # of every trunk, see core/trunk/projectors.py
    return list(own)
