"""What a SiT file's shapes tell of the model, and models built from files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from core.errors import CheckpointError
from core.trunk.foreign.conversions import PATCH
from core.trunk.foreign.files import read_file, some
from core.trunk.foreign.kinds import check_arguments, check_kind, detect
from core.trunk.foreign.strict import load_strictly
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SIZES, SiT, SiTConfig

_LAST = {"linear2.weight": "simple", "4.weight": "repa"}  # a projector's last layer -> its kind


def infer_sit_config(state: Mapping[str, Tensor], heads: int | None = None, patch: int = 2) -> SiTConfig:
    """The configuration whose model has the shapes of `state`, which has our names and layout.

    Args:
        heads: not visible in any shape; by default that of the published size of the same width, or heads of 64
            channels.
        patch: not visible either; 2 in the released Self-Flow weights.

    Raises:
        CheckpointError: `state` is no SiT.
    """
    needed = {
        PATCH: 2,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    wrong = [f"{name} (missing)" for name in needed if name not in state]
    wrong += [f"{n} {tuple(state[n].shape)}" for n, dims in needed.items() if n in state and state[n].ndim != dims]
    if wrong:
        raise CheckpointError(f"not a SiT state dict: {', '.join(wrong)}; it holds {some(list(state))}")
    width, channels = state[PATCH].shape
    numbers = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    depth = 1 + max(int(number) for number in numbers if number.isdigit())
    names = {size.width: name for name, size in SIZES.items() if (size.width, size.depth) == (width, depth)}
    widths = {size.width: size.heads for size in SIZES.values()}
    return SiTConfig(
        size=names.get(width, "XL"),
        width=width,
        depth=depth,
        heads=heads or widths.get(width) or max(1, width // 64),
        grid=round(state["pos_embed"].shape[1] ** 0.5),
        channels=channels,
        patch=patch,
        num_classes=state["y_embedder.embedding_table.weight"].shape[0],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        learn_sigma=state["final_layer.linear.weight"].shape[0] == 2 * channels,
    )


def infer_projectors(state: Mapping[str, Tensor]) -> dict[str, ProjectorSpec]:
    """The projectors that `state`, which has our names, has weights of."""
    found = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first not in ("projector", "projectors"):
            continue
        key, _, layer = (TEACHER, "", rest) if first == "projector" else rest.partition(".")
        if layer in _LAST:
            found[key] = ProjectorSpec(_LAST[layer], value.shape[0])
    return found


def misfit_settings(state: Mapping[str, Tensor], config: SiTConfig) -> list[str]:
    """The settings of `config` that `state` contradicts: "depth 12, the file has 28"; empty if it is no SiT."""
    try:
        found = infer_sit_config(state, heads=config.shape().heads, patch=config.patch)
    except CheckpointError:
        return []
    seen, chosen = found.shape()._asdict(), config.shape()._asdict()
    for name in ("grid", "channels", "num_classes", "mlp_ratio", "learn_sigma"):
        seen[name], chosen[name] = getattr(found, name), getattr(config, name)
    return [f"{name} {chosen[name]}, the file has {seen[name]}" for name in chosen if seen[name] != chosen[name]]


def load_sit(
    path: Path | str,
    heads: int | None = None,
    patch: int = 2,
    kind: str | None = None,
    projectors: Sequence[str] | None = None,
) -> SiT:
    """The model of a published (or exported) file of any SiT kind, of the size that its shapes tell.

    Args:
        heads, patch: see `infer_sit_config`; `patch` is looked at only where the file does not show it.
        kind: a name of `KINDS`; detected unless given.
        projectors: names for REPA's numbered projectors, `encoder_0`, `encoder_1` ... unless given.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    file = read_file(path)
    name = kind or detect(file.state, file.source)
    kind_of = check_kind(name, file.state, file.source)
    check_arguments(kind_of, file.arguments, file.source)
    if kind_of.trunk is not SiT:
        raise CheckpointError(f"{file.source} is of kind {name!r} ({kind_of.about}), not a SiT")
    if file.state[PATCH].ndim == 4:
        patch = file.state[PATCH].shape[-1]
    numbers = {part.split(".")[1] for part in file.state if part.startswith("projectors.")}
    state = kind_of.decode(file.state, projectors or [f"encoder_{number}" for number in range(len(numbers))])
    config = infer_sit_config(state, heads, patch)
    if problems := config.problems():
        raise CheckpointError(f"{path}: its shapes give no usable trunk: {'; '.join(problems)}")
    with torch.device("meta"):
        trunk = SiT(config, projectors=infer_projectors(state))
    trunk = trunk.to(state["pos_embed"].dtype).to_empty(device="cpu")
    load_strictly(trunk, state, file.source)
    return trunk
