"""LoRA files of other projects, for our trunks: to train on from, or merged into the weights to sample with.

Read are the names of the authors and of diffusers, with `diffusion_model.`, `transformer.`, `base_model.model.` or no
prefix, and kohya's (`lora_unet_...`). An `alpha` beside a layer is divided by its rank, as ComfyUI and kohya do; so is
the one that diffusers writes into the header of a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.errors import CheckpointError
from core.trunk.foreign.files import read_file, some
from core.trunk.foreign.lora import Pairs, converter
from core.trunk.foreign.strict import not_finite

_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:diffusion_model\.|transformer\.)?")
_TENSOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up)(?:\.[^.]+)?\.weight")
_KOHYA = "lora_unet_"
_SIDES = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}


@dataclass(frozen=True)
class _Rows:
    """What a tensor of a file is of ours: `rows` (n,) of the output of `layer`."""

    layer: str
    rows: Tensor


def linear_layers(trunk: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of blocks, under the names that they have without adapters."""
    found: dict[str, nn.Linear] = {}
    for name, module in trunk.named_modules():
        own = getattr(module, "base_layer", module)
        inside = re.search(r"blocks\.\d+\.", name) and not re.search(r"base_layer|lora_", name)
        if isinstance(own, nn.Linear) and inside:
            found[name] = own
    return found


def read_adapter(trunk: nn.Module, path: Path | str) -> Pairs:
    """layer of the trunk -> A (rank, in) and B (out, rank) float32, whose product is the whole change of its weight.

    Where parts of one of our layers have an A each (diffusers' queries, keys and values), their ranks add up.

    Raises CheckpointError for a file without LoRA, and for one of another network, by the name of the layer.
    """
    file = read_file(path)
    if broken := not_finite(file.state):
        raise CheckpointError(f"{path}: holds numbers that are NaN or infinite: {some(broken)}")
    table, layers, scale = _table(trunk), linear_layers(trunk), _header_scale(Path(path))
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for name, (a, b) in _pairs(file.state, str(path)).items():
        place = table.get(name) or table.get(name.removeprefix(_KOHYA).replace(".", "_"))
        if place is None:
            raise CheckpointError(
                f"{path}: changes {name}, and this {type(trunk).__name__} has no such linear layer in its blocks; the "
                "file is of another network"
            )
        columns = layers[place.layer].in_features
        if (b.shape[0], a.shape[1]) != (len(place.rows), columns):
            raise CheckpointError(
                f"{path}: changes {name} of {b.shape[0]} x {a.shape[1]}, which is {len(place.rows)} x {columns} here; "
                "the file is of a network of another size"
            )
        found.setdefault(place.layer, []).append((place.rows, a, b * scale))
    return {layer: _joined(parts, layers[layer].out_features) for layer, parts in found.items()}


def merge_adapter(trunk: nn.Module, pairs: Pairs, strength: float = 1.0) -> None:
    """Add the change of every layer to its weight, in place, computed in float32."""
    layers = linear_layers(trunk)
    with torch.no_grad():
        for layer, (a, b) in pairs.items():
            weight = layers[layer].weight
            change = strength * (b @ a)
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def start_adapter(trunk: nn.Module, pairs: Pairs, scale: float, path: Path | str) -> None:
    """Let the adapters of a trunk begin as those of a file.

    Args:
        scale: alpha / rank of the trunk's adapters, by which their product is multiplied.

    Raises CheckpointError where the file has other layers, or another rank.
    """
    state = dict(trunk.named_parameters())
    own = {name.partition(".lora_A.")[0]: name for name in state if ".lora_A." in name}
    if missing := [name for name in own if name not in pairs]:
        raise CheckpointError(
            f"{path}: has nothing for {some(missing)}; name those that it has in training.adapter.layers"
        )
    if left := [name for name in pairs if name not in own]:
        raise CheckpointError(
            f"{path}: changes {some(left)}, which training.adapter.layers leaves out; both must have the same layers"
        )
    ranks = {layer: (a.shape[0], state[own[layer]].shape[0]) for layer, (a, _) in pairs.items()}
    if wrong := [layer for layer, (theirs, ours) in ranks.items() if theirs != ours]:
        theirs, ours = ranks[wrong[0]]
        raise CheckpointError(
            f"{path}: has rank {theirs} at {wrong[0]}, and training.adapter.rank is {ours}; set it to {theirs}"
        )
    with torch.no_grad():
        for layer, (a, b) in pairs.items():
            state[own[layer]].copy_(a)
            state[own[layer].replace(".lora_A.", ".lora_B.")].copy_(b / scale)


def _table(trunk: nn.Module) -> dict[str, _Rows]:
    """Names of layers in files, of all layouts -> what they are of ours.

    Found by converting the numbers of our rows as if they were weights, so that names and orders are those of export.
    """
    found: dict[str, _Rows] = {}
    for diffusers in (False, True):
        convert = converter(trunk, diffusers)
        for layer, module in linear_layers(trunk).items():
            numbers = torch.arange(module.out_features)[:, None]
            for name, rows in convert({f"{layer}.weight": numbers}).items():
                place = name.removesuffix(".weight")
                found[place] = _Rows(layer, rows[:, 0])
                if not diffusers:
                    found[place.replace(".", "_")] = found[place]
    return found


def _header_scale(path: Path) -> float:
    """alpha / rank as diffusers writes it into a file; 1 where it says nothing.

    Raises CheckpointError for other rules, such as a rank of its own for some layers.
    """
    if path.suffix != ".safetensors":
        return 1.0
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata")
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise CheckpointError(f"{path}: its header lora_adapter_metadata is damaged ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: its header lora_adapter_metadata is damaged: {text}")
    said = {key.rpartition(".")[2]: value for key, value in found.items()}
    odd = [key for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora") if said.get(key)]
    if odd:
        raise CheckpointError(f"{path}: its LoRA has {', '.join(odd)}, which is not read here")
    if "lora_alpha" not in said or "r" not in said:
        return 1.0
    alpha, rank = said["lora_alpha"], said["r"]
    if not all(isinstance(value, (int, float)) and value > 0 for value in (alpha, rank)):
        raise CheckpointError(f"{path}: its header has r {rank!r} and lora_alpha {alpha!r}; both must be above 0")
    return alpha / rank


def _pairs(state: Mapping[str, Tensor], source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a layer in the file -> A and B, float32, B multiplied by alpha / rank where the file says alpha."""
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    other = []
    for key, value in state.items():
        name = _PREFIX.sub("", key)
        if match := _TENSOR.fullmatch(name):
            sides.setdefault(match[1], {})[_SIDES[match[2]]] = value.float()
        elif name.endswith(".alpha"):
            if value.numel() != 1:
                raise CheckpointError(f"{source}: {key} has {value.numel()} numbers; an alpha is one")
            alphas[name.removesuffix(".alpha")] = float(value)
        else:
            other.append(key)
    if not sides or other:
        raise CheckpointError(f"{source}: is no LoRA file; it has {some(other or list(state))}")
    halves = [name for name, parts in sides.items() if len(parts) < 2]
    if halves:
        raise CheckpointError(f"{source}: has one of the two tensors of {some(halves)} only")
    found = {}
    for name, parts in sides.items():
        a, b = parts["A"], parts["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise CheckpointError(f"{source}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} have no common rank")
        found[name] = a, b * (alphas[name] / a.shape[0] if name in alphas else 1.0)
    return found


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], rows: int) -> tuple[Tensor, Tensor]:
    """One A and B of a layer from those of some of its rows each."""
    first = parts[0][1]
    if all(torch.equal(a, first) for _, a, _ in parts):
        whole = torch.zeros(rows, first.shape[0])
        for index, _, b in parts:
            whole[index] = b
        return first, whole
    whole, start = torch.zeros(rows, sum(a.shape[0] for _, a, _ in parts)), 0
    for index, a, b in parts:
        whole[index, start : start + a.shape[0]] = b
        start += a.shape[0]
    return torch.cat([a for _, a, _ in parts]), whole
