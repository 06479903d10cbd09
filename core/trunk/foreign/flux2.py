"""Names and orders of FLUX.2's files, of its authors and of diffusers, and ours. Tensors keep their bytes.

The authors' names are in the middle: diffusers splits their fused queries, keys and values, and swaps shift and scale
of the last modulation; we fuse the scales of the norms of queries and keys, and turn other pairs of channels. FLUX.2
rotates neighbouring channels (2i, 2i + 1) of a head and we (i, i + half), so its rows of queries and keys are put into
our order. Norms and products of queries and keys do not see the order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

NULL = "context.reader.null"  # features of the empty text: no weight of FLUX.2

# Beginnings of names, the authors' -> ours.
_OURS = {
    "img_in.": "media_in.image.",
    "txt_in.": "context.reader.linear.",
    "time_in.in_layer.": "time.mlp.0.",
    "time_in.out_layer.": "time.mlp.2.",
    "guidance_in.in_layer.": "guidance.mlp.0.",
    "guidance_in.out_layer.": "guidance.mlp.2.",
    "double_stream_modulation_img.lin.": "media_modulation.linear.",
    "double_stream_modulation_txt.lin.": "text_modulation.linear.",
    "single_stream_modulation.lin.": "single_modulation.linear.",
    "final_layer.adaLN_modulation.1.": "final_modulation.",
    "final_layer.linear.": "media_out.image.",
}
# In blocks, behind `double_blocks.N.` with a stream's name and behind `single_blocks.N.`.
_STREAMS = {"img": "media", "txt": "text"}
_OURS_INSIDE = {
    "attn.qkv.": "qkv.",
    "attn.proj.": "attention_out.",
    "mlp.0.": "mlp.linear1.",
    "mlp.2.": "mlp.linear2.",
}
# Beginnings of names, the authors' -> diffusers'.
_DIFFUSERS = {
    "img_in.": "x_embedder.",
    "txt_in.": "context_embedder.",
    "time_in.in_layer.": "time_guidance_embed.timestep_embedder.linear_1.",
    "time_in.out_layer.": "time_guidance_embed.timestep_embedder.linear_2.",
    "guidance_in.in_layer.": "time_guidance_embed.guidance_embedder.linear_1.",
    "guidance_in.out_layer.": "time_guidance_embed.guidance_embedder.linear_2.",
    "double_stream_modulation_img.lin.": "double_stream_modulation_img.linear.",
    "double_stream_modulation_txt.lin.": "double_stream_modulation_txt.linear.",
    "single_stream_modulation.lin.": "single_stream_modulation.linear.",
    "final_layer.adaLN_modulation.1.": "norm_out.linear.",
    "final_layer.linear.": "proj_out.",
}
# Inside blocks, the authors' -> diffusers'. A tuple: one fused tensor there, several here.
_DIFFUSERS_DOUBLE: dict[str, str | tuple[str, ...]] = {
    "img_attn.qkv.weight": ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"),
    "txt_attn.qkv.weight": ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight"),
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "img_attn.proj.weight": "attn.to_out.0.weight",
    "txt_attn.proj.weight": "attn.to_add_out.weight",
    "img_mlp.0.weight": "ff.linear_in.weight",
    "img_mlp.2.weight": "ff.linear_out.weight",
    "txt_mlp.0.weight": "ff_context.linear_in.weight",
    "txt_mlp.2.weight": "ff_context.linear_out.weight",
}
_DIFFUSERS_SINGLE: dict[str, str | tuple[str, ...]] = {
    "linear1.weight": "attn.to_qkv_mlp_proj.weight",
    "linear2.weight": "attn.to_out.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
_DIFFUSERS_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_SWAPPED = "norm_out.linear.weight"


def from_authors(state: State) -> State:
    """The authors' names -> ours. What is unknown keeps its name, so that a strict load names it."""
    head = _head_dim(state, "query_norm.scale")
    found: State = {}
    norms: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            found[_renamed(name, _OURS)] = value
            continue
        kind, number, inside = block.groups()
        stream, inside = _split_stream(inside) if kind == "double" else ("", inside)
        place = f"{kind}_blocks.{number}.{stream}"
        if scale := re.fullmatch(r"(?:attn\.)?norm\.(query|key)_norm\.scale", inside):
            norms.setdefault(f"{place}norm.scale", {})[scale[1]] = value
            continue
        name = place + _renamed(inside, _OURS_INSIDE)
        found[name] = _to_halves(value, head, queries_and_keys(name, value)) if head else value
    for name, parts in norms.items():
        if len(parts) == 2:
            found[name] = torch.cat([_to_halves(parts[key], head, head) for key in ("query", "key")])
        else:
            found |= {f"{name}.{key}": value for key, value in parts.items()}
    return found


def to_authors(state: State, head: int | None = None, width: int | None = None) -> State:
    """Ours -> the authors' names.

    Args:
        head, width: channels of a head and of the network, where `state` is part of one that does not show them.
    """
    head = _head_dim(state, "norm.scale") // 2 if head is None else head
    back = {ours: theirs for theirs, ours in _OURS.items()}
    inside_back = {ours: theirs for theirs, ours in _OURS_INSIDE.items()}
    found: State = {}
    for name, value in state.items():
        if name == NULL:
            continue
        block = _BLOCK.fullmatch(name)
        if block is None:
            found[_renamed(name, back)] = value
            continue
        kind, number, inside = block.groups()
        place, attention = f"{kind}_blocks.{number}.", ""
        if kind == "double":
            stream, _, inside = inside.partition(".")
            short = next((theirs for theirs, ours in _STREAMS.items() if ours == stream), stream)
            place, attention = f"{place}{short}_", "attn."
        if inside == "norm.scale":
            for key, scale in zip(("query", "key"), value.split(head), strict=True):
                found[f"{place}{attention}norm.{key}_norm.scale"] = _to_neighbours(scale, head, head)
            continue
        value = _to_neighbours(value, head, queries_and_keys(name, value, width)) if head else value
        found[place + (_renamed(inside, inside_back) if kind == "double" else inside)] = value
    return found


def authors_from_diffusers(state: State) -> State:
    """diffusers' names -> the authors'."""
    back = {theirs: ours for ours, theirs in _DIFFUSERS.items()}
    found: State = {}
    fused: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, tuple[str, ...]] = {}
    tables = {
        None: ("double_blocks", *_inverse(_DIFFUSERS_DOUBLE)),
        "single_": ("single_blocks", *_inverse(_DIFFUSERS_SINGLE)),
    }
    for name, value in state.items():
        block = _DIFFUSERS_BLOCK.fullmatch(name)
        if block is None:
            found[_renamed(name, back)] = _swap_halves(value) if name == _SWAPPED else value
            continue
        kind, number, inside = block.groups()
        family, names, fusions = tables[kind]
        if inside in fusions:
            whole, split = fusions[inside]
            key = f"{family}.{number}.{whole}"
            fused.setdefault(key, {})[inside], parts[key] = value, split
        else:
            found[f"{family}.{number}.{names.get(inside, inside)}"] = value
    for key, pieces in fused.items():
        if len(pieces) == len(parts[key]):
            found[key] = torch.cat([pieces[name] for name in parts[key]])
        else:  # of a damaged file: a strict load names what is left over, and what is missing
            found |= {f"{key}.{name}": value for name, value in pieces.items()}
    return found


def diffusers_from_authors(state: State) -> State:
    """The authors' names -> diffusers'."""
    found: State = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            name = _renamed(name, _DIFFUSERS)
            found[name] = _swap_halves(value) if name == _SWAPPED else value
            continue
        kind, number, inside = block.groups()
        table, family = (
            (_DIFFUSERS_DOUBLE, "transformer_blocks")
            if kind == "double"
            else (_DIFFUSERS_SINGLE, "single_transformer_blocks")
        )
        theirs = table.get(inside, inside)
        names = (theirs,) if isinstance(theirs, str) else theirs
        for part, piece in zip(names, value.chunk(len(names)), strict=True):
            found[f"{family}.{number}.{part}"] = piece
    return found


def from_diffusers(state: State) -> State:
    return from_authors(authors_from_diffusers(state))


def to_diffusers(state: State) -> State:
    return diffusers_from_authors(to_authors(state))


def queries_and_keys(name: str, value: Tensor, width: int | None = None) -> int:
    """How many first rows of one of our tensors are those of queries and keys; 0 for most tensors.

    `width` is the network's where the tensor has not as many columns.
    """
    if name.endswith(".qkv.weight"):
        return value.shape[0] * 2 // 3
    if name.startswith("single_blocks.") and name.endswith(".linear1.weight") and value.ndim == 2:
        return 2 * (width or value.shape[1])
    return 0


def _to_halves(value: Tensor, head: int, rows: int) -> Tensor:
    """Rows of heads in FLUX.2's order (pairs 2i, 2i + 1) -> ours (i, i + half), of the first `rows`."""
    return _permuted(value, rows, (-1, head // 2, 2))


def _to_neighbours(value: Tensor, head: int, rows: int) -> Tensor:
    """The inverse of `_to_halves`."""
    return _permuted(value, rows, (-1, 2, head // 2))


def _permuted(value: Tensor, rows: int, sizes: tuple[int, int, int]) -> Tensor:
    """Of a tensor with other rows than the network's nothing is moved: a strict load names it."""
    if not rows or rows > value.shape[0] or rows % (sizes[1] * sizes[2]):
        return value
    first = value[:rows].unflatten(0, sizes).transpose(1, 2).flatten(0, 2)
    return torch.cat([first, value[rows:]])


def _swap_halves(value: Tensor) -> Tensor:
    """(2W, W): shift, scale <-> scale, shift."""
    return torch.cat(value.chunk(2)[::-1])


def _head_dim(state: Mapping[str, Tensor], ending: str) -> int:
    """Length of a norm's scale; 0 where there is none."""
    return next((value.shape[0] for name, value in state.items() if name.endswith(ending)), 0)


def _split_stream(inside: str) -> tuple[str, str]:
    """img_attn.qkv.weight -> (media., attn.qkv.weight)"""
    stream, _, rest = inside.partition("_")
    return (f"{_STREAMS[stream]}.", rest) if stream in _STREAMS else ("", inside)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(prefix, "") + name.removeprefix(prefix)


_Fusions = dict[str, tuple[str, tuple[str, ...]]]


def _inverse(table: Mapping[str, str | tuple[str, ...]]) -> tuple[dict[str, str], _Fusions]:
    """(diffusers' name -> the authors', diffusers' part -> the authors' whole and all of its parts)."""
    plain = {theirs: ours for ours, theirs in table.items() if isinstance(theirs, str)}
    fused = {part: (ours, theirs) for ours, theirs in table.items() if not isinstance(theirs, str) for part in theirs}
    return plain, fused
