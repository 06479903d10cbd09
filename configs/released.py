"""A run to pass on: what generation reads and nothing else, in two small files.

    model.safetensors   the weights under this project's names, a file of `selfflow export` that `import` reads too
    model.json          the step, which weights they are, and what a checkpoint stores beside its tensors

There is no optimizer, no pickle and no path of the machine, but for those that the configuration itself has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.durable import writing
from core.errors import CheckpointError
from core.training.config import with_value
from core.trunk.foreign import export_weights, read_state_dict
from core.trunk.foreign.strict import cast, load_strictly

WEIGHTS_FILE, ABOUT = "model.safetensors", "model.json"
NATIVE = {"flux2": "native-mmdit"}  # trunk.kind -> kind of the file, where it is not native-KIND
_ELSEWHERE = ("root", "shares", "compiled")  # what says where and how a run was trained


@dataclass(frozen=True)
class Released:
    """
    Attributes:
        step: of the checkpoint that the weights were taken from.
        which: ema or student.
        extra: what the checkpoint stored beside its tensors, without projectors and adapters.
    """

    step: int
    which: str
    extra: dict[str, Any]


def is_released(folder: Path) -> bool:
    return (folder / ABOUT).is_file()


def release(
    folder: Path,
    trunk: nn.Module,
    state: dict[str, Tensor],
    step: int,
    which: str,
    extra: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    meaning: dict[str, Any] | None = None,
) -> None:
    """Write a folder that `selfflow generate --run` reads. `model.json`, by which it is known, comes last.

    Args:
        trunk, state: the network and its weights, adapters merged into them. Projectors are left out: only training
            reads them.
        extra: of the run's checkpoint.
        dtype: of the numbers in the file; None for the trunk's.
        meaning: see configs/weight_metadata.py.

    Raises:
        CheckpointError: the folder has been written before, or the weights are not finite.
        DataError: it cannot be written.
    """
    if is_released(folder):
        raise CheckpointError(f"{folder / ABOUT} exists already and is not overwritten")
    state = {name: value for name, value in state.items() if name.split(".")[0] not in ("projector", "projectors")}
    kept = {key: value for key, value in extra.items() if key not in _ELSEWHERE} | {"projectors": {}}
    config = with_value(with_value(kept["config"], "run", ""), "training.adapter", None)
    kind = config["trunk"]["kind"]
    export_weights(
        trunk,
        state if dtype is None else cast(state, dtype),
        folder / WEIGHTS_FILE,
        NATIVE.get(kind, f"native-{kind}"),
        meaning=meaning,
    )
    about = {"step": step, "weights": which, "extra": kept | {"config": config}}
    with writing(folder / ABOUT):
        (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_released(folder: Path) -> Released:
    """Raises CheckpointError for a damaged model.json."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Released(int(about["step"]), str(about["weights"]), dict(about["extra"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or of another version of this project ({error})") from error


def load_released(folder: Path, trunk: nn.Module) -> None:
    """The weights into a trunk of the same settings, in its own precision; strictly.

    Raises CheckpointError for a file that is missing, damaged, or does not fit.
    """
    state = read_state_dict(folder / WEIGHTS_FILE)
    load_strictly(trunk, cast(state, next(trunk.parameters()).dtype), str(folder / WEIGHTS_FILE))
