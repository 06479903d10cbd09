"""Adapters of linear layers (LoRA): as files that other projects read, and merged into the weights.

One layout is read right by diffusers and ComfyUI alike: the authors' names behind `diffusion_model.`, lora_A and
lora_B, with alpha / rank multiplied into lora_B, since readers disagree about keys for alpha. `load_lora_adapter` of
diffusers' networks knows diffusers' names alone, behind `transformer.`; there is a layout for it, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.errors import CheckpointError, choose
from core.trunk.foreign import flux2, wan
from core.trunk.foreign.files import write_file
from core.trunk.foreign.strict import not_finite
from core.trunk.mmdit import MMDiT
from core.trunk.wan import Wan

State = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]  # layer -> A (rank, in), B (out, rank)
_PART = re.compile(r"(.+)\.lora_([AB])\.[^.]+\.weight")
# Layout -> prefix of names, and whether they are diffusers'.
LAYOUTS = {"lora": ("diffusion_model.", False), "lora-diffusers": ("transformer.", True)}


def adapters(state: Mapping[str, Tensor]) -> Pairs:
    """The adapters in a state dict of a network that peft has changed; {} where there are none."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if match := _PART.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = value
    return {layer: (parts["A"], parts["B"]) for layer, parts in found.items()}


def merged(state: State, scale: float) -> State:
    """Weights of the network without adapters: base + scale * B A, added in float32, in the type of the base."""
    pairs = adapters(state)
    found: State = {}
    for name, value in state.items():
        if _PART.fullmatch(name):
            continue
        layer, inside, kind = name.rpartition(".base_layer.")
        if inside and layer in pairs and kind == "weight":
            a, b = pairs[layer]
            value = (value.float() + scale * (b.float() @ a.float())).to(value.dtype)
        found[f"{layer}.{kind}" if inside else name] = value
    return found


def adapter_file(trunk: nn.Module, state: State, scale: float, layout: str) -> State:
    """Tensors of a LoRA file.

    Args:
        trunk: gives kind and shape.
        state: under our names, with adapters.
        scale: alpha / rank.
        layout: a name of `LAYOUTS`.

    Raises:
        CheckpointError: there are no adapters, or no such file holds those of this trunk.
    """
    prefix, theirs = choose("layout", layout, LAYOUTS)
    pairs = adapters(state)
    if not pairs:
        raise CheckpointError("there is no adapter in these weights; training.adapter makes one")
    convert = converter(trunk, theirs)
    found: State = {}
    for layer, (a, b) in pairs.items():
        for name, rows in convert({f"{layer}.weight": b.float() * scale}).items():
            place = prefix + name.removesuffix(".weight")
            found |= {f"{place}.lora_A.weight": a.float(), f"{place}.lora_B.weight": rows}
    return found


def export_adapter(
    trunk: nn.Module, state: State, scale: float, path: Path | str, layout: str, meaning: dict[str, Any] | None = None
) -> None:
    """Write a LoRA file, `.safetensors`. Raises CheckpointError as `adapter_file` and `write_file` do."""
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: LoRA files are .safetensors")
    tensors = adapter_file(trunk, state, scale, layout)
    if broken := not_finite(tensors):
        raise CheckpointError(f"weights that are NaN or infinite are not exported: {', '.join(broken[:3])}")
    write_file(tensors, path, meaning=meaning)


def converter(trunk: nn.Module, diffusers: bool) -> Callable[[State], State]:
    """Rows of one of our layers -> the same under the names, and in the order, of a file.

    Raises CheckpointError for a trunk whose adapters no other project reads.
    """
    if isinstance(trunk, Wan):
        head = trunk.width // trunk.heads
        write = wan.to_diffusers if diffusers else wan.to_authors
        return lambda state: write(state, head)
    if isinstance(trunk, MMDiT) and len(trunk.rope_axes) == 4:
        head, width = trunk.width // trunk.heads, trunk.width

        def convert(state: State) -> State:
            named = flux2.to_authors(state, head, width)
            return flux2.diffusers_from_authors(named) if diffusers else named

        return convert
    raise CheckpointError(
        f"no other project reads adapters of a {type(trunk).__name__}; LoRA files are for trunk.kind flux2 and wan. "
        "Export the merged weights (--kind native-...)"
    )
