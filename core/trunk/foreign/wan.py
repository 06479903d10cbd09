"""Names and orders of Wan 2.2's files, of its authors and of diffusers, and ours. Tensors keep their bytes.

diffusers' names are in the middle. Queries, keys and values are fused here; rows of queries and keys that are rotated
(self-attention alone) go from pairs of neighbours (2i, 2i + 1) to pairs (i, i + half), with their biases and the scales
of their norms; rows of the head go from the order (h, w, channel) to that of the tokens, (channel, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from core.errors import CheckpointError

State = dict[str, Tensor]
Patch = tuple[int, int, int]

PATCH: Patch = (1, 2, 2)  # latent cells of a token over (t, h, w)
HEAD_DIM = 128
NULL = "null"  # features of the empty text: no weight of Wan
INPUT, HEAD, TABLE, FINAL_TABLE = "patch_embedding.weight", "proj_out.", "scale_shift_table", "scale_shift_table"

_OURS = {
    "patch_embedding.": "media_in.video.",
    "condition_embedder.time_embedder.linear_1.": "time.mlp.0.",
    "condition_embedder.time_embedder.linear_2.": "time.mlp.2.",
    "condition_embedder.time_proj.": "time_rows.",
    "condition_embedder.text_embedder.linear_1.": "text.0.",
    "condition_embedder.text_embedder.linear_2.": "text.2.",
    "proj_out.": "media_out.video.",
}
# Inside a block, ours -> diffusers'; several there are one tensor here.
_FUSED = {
    "self_attention.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attention.kv": ("attn2.to_k", "attn2.to_v"),
}
_INSIDE = {
    "self_attention.norm_q.scale": "attn1.norm_q.weight",
    "self_attention.norm_k.scale": "attn1.norm_k.weight",
    "self_attention.out.": "attn1.to_out.0.",
    "cross_attention.q.": "attn2.to_q.",
    "cross_attention.norm_q.scale": "attn2.norm_q.weight",
    "cross_attention.norm_k.scale": "attn2.norm_k.weight",
    "cross_attention.out.": "attn2.to_out.0.",
    "cross_norm.": "norm2.",
    "mlp.0.": "ffn.net.0.proj.",
    "mlp.2.": "ffn.net.2.",
}
# The authors' -> diffusers'.
_AUTHORS = {
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "head.head.": "proj_out.",
    "head.modulation": "scale_shift_table",
}
_AUTHORS_INSIDE = {
    **{f"self_attn.{letter}.": f"attn1.to_{letter}." for letter in "qkv"},
    "self_attn.o.": "attn1.to_out.0.",
    "self_attn.norm_": "attn1.norm_",
    **{f"cross_attn.{letter}.": f"attn2.to_{letter}." for letter in "qkv"},
    "cross_attn.o.": "attn2.to_out.0.",
    "cross_attn.norm_": "attn2.norm_",
    "norm3.": "norm2.",
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    "modulation": "scale_shift_table",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def diffusers_from_authors(state: State) -> State:
    """The authors' names -> diffusers'; tensors are the same."""
    return {_place(name, _AUTHORS, _AUTHORS_INSIDE): value for name, value in state.items()}


def authors_from_diffusers(state: State) -> State:
    """The inverse."""
    back, inside = ({b: a for a, b in table.items()} for table in (_AUTHORS, _AUTHORS_INSIDE))
    return {_place(name, back, inside): value for name, value in state.items()}


def from_diffusers(state: State, head_dim: int = HEAD_DIM) -> State:
    """diffusers' names -> ours. What is unknown keeps its name, so that a strict load names it."""
    patch = state[INPUT].shape[2:] if INPUT in state and state[INPUT].ndim == 5 else PATCH
    found: State = {}
    pieces: dict[str, dict[str, Tensor]] = {}
    inside_back = {theirs: ours for ours, theirs in _INSIDE.items()}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            found |= _outer(name, value, patch)
            continue
        number, inside = block.groups()
        module, _, kind = inside.rpartition(".")
        whole = next((ours for ours, parts in _FUSED.items() if module in parts), None)
        if inside == TABLE:
            found[f"blocks.{number}.table"] = value[0]
        elif whole is not None:
            pieces.setdefault(f"blocks.{number}.{whole}.{kind}", {})[module] = value
        else:
            found[f"blocks.{number}.{_renamed(inside, inside_back)}"] = value
    for name, parts in pieces.items():
        wanted = next(split for whole, split in _FUSED.items() if f".{whole}." in name)
        if len(parts) == len(wanted):
            found[name] = torch.cat([parts[part] for part in wanted])
        else:  # of a damaged file: a strict load names what is left over, and what is missing
            found |= {f"{name}.{part}": value for part, value in parts.items()}
    return {name: _turned(name, value, (-1, head_dim // 2, 2)) for name, value in found.items()}


def to_diffusers(state: State, head_dim: int = HEAD_DIM, patch: Patch = PATCH) -> State:
    """Ours -> diffusers' names."""
    back, found = {ours: theirs for theirs, ours in _OURS.items()}, {}
    for name, value in state.items():
        if name == NULL:
            continue
        value = _turned(name, value, (-1, 2, head_dim // 2))
        block = _BLOCK.fullmatch(name)
        if block is None:
            found |= _outer_back(name, value, patch, back)
            continue
        number, inside = block.groups()
        module, _, kind = inside.rpartition(".")
        if inside == "table":
            found[f"blocks.{number}.{TABLE}"] = value[None]
        elif module in _FUSED:
            parts = zip(_FUSED[module], value.chunk(len(_FUSED[module])), strict=True)
            found |= {f"blocks.{number}.{part}.{kind}": piece for part, piece in parts}
        else:
            found[f"blocks.{number}.{_renamed(inside, _INSIDE)}"] = value
    return found


def from_authors(state: State, head_dim: int = HEAD_DIM) -> State:
    return from_diffusers(diffusers_from_authors(state), head_dim)


def to_authors(state: State, head_dim: int = HEAD_DIM, patch: Patch = PATCH) -> State:
    return authors_from_diffusers(to_diffusers(state, head_dim, patch))


def _outer(name: str, value: Tensor, patch: Patch | torch.Size) -> State:
    if name == INPUT:
        value = value.flatten(1)  # a convolution over whole patches is a linear layer on (channel, t, h, w)
    elif name.startswith(HEAD):
        value = _channels_first(value, patch)
    elif name == FINAL_TABLE:
        return {"final_table": value[0]}
    return {_renamed(name, _OURS): value}


def _outer_back(name: str, value: Tensor, patch: Patch, back: Mapping[str, str]) -> State:
    if name == "final_table":
        return {FINAL_TABLE: value[None]}
    name = _renamed(name, back)
    if name == INPUT:
        if value.shape[1] % (patch[0] * patch[1] * patch[2]):
            raise CheckpointError(f"{name}: tokens of {value.shape[1]} channels are no patches of {patch} cells")
        value = value.unflatten(1, (-1, *patch))
    elif name.startswith(HEAD):
        value = _channels_last(value, patch)
    return {name: value}


def _channels_first(value: Tensor, patch: Patch | torch.Size) -> Tensor:
    """Rows (t, h, w, channel) -> (channel, t, h, w)."""
    cells = patch[0] * patch[1] * patch[2]
    return value.unflatten(0, (cells, -1)).transpose(0, 1).flatten(0, 1) if value.shape[0] % cells == 0 else value


def _channels_last(value: Tensor, patch: Patch) -> Tensor:
    """The inverse of `_channels_first`."""
    cells = patch[0] * patch[1] * patch[2]
    return value.unflatten(0, (-1, cells)).transpose(0, 1).flatten(0, 1) if value.shape[0] % cells == 0 else value


def _turned(name: str, value: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """Rows of rotated queries and keys of one of our tensors in another order of each head's channels."""
    rows = rotated_rows(name, value)
    if not rows or rows % (abs(sizes[1] * sizes[2])):
        return value
    return torch.cat([value[:rows].unflatten(0, sizes).transpose(1, 2).flatten(0, 2), value[rows:]])


def rotated_rows(name: str, value: Tensor) -> int:
    """How many first rows of one of our tensors belong to queries and keys that are rotated; 0 for most tensors."""
    if ".self_attention.qkv." in name:
        return value.shape[0] * 2 // 3
    return value.shape[0] if ".self_attention.norm_" in name else 0


def _place(name: str, outer: Mapping[str, str], inside: Mapping[str, str]) -> str:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _renamed(name, outer)
    return f"blocks.{block[1]}.{_renamed(block[2], inside)}"


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(prefix, "") + name.removeprefix(prefix)
