"""A small RAE in the published layout: weights that depend on their names only, so golden values can belong to them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from core.keys import generator


def drawn(name: str, shape: tuple[int, ...], mean: float = 0.0, std: float = 0.1) -> torch.Tensor:
    return mean + std * torch.randn(shape, generator=generator("rae", name))


def decoder_weights(channels: int, width: int, layers: int, inner: int, cells: int, patch: int = 16) -> dict:
    """The published state dict of a decoder."""
    shapes = {
        "decoder_pos_embed": (1, cells + 1, width),
        "trainable_cls_token": (1, 1, width),
        "decoder_embed.weight": (width, channels),
        "decoder_norm.weight": (width,),
        "decoder_pred.weight": (patch * patch * 3, width),
    }
    for i in range(layers):
        layer = f"decoder_layers.{i}."
        shapes |= {f"{layer}attention.attention.{name}.weight": (width, width) for name in ("query", "key", "value")}
        shapes |= {f"{layer}{name}.weight": (width,) for name in ("layernorm_before", "layernorm_after")}
        shapes[f"{layer}attention.output.dense.weight"] = (width, width)
        shapes[f"{layer}intermediate.dense.weight"] = (inner, width)
        shapes[f"{layer}output.dense.weight"] = (width, inner)
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if "weight" in name}
    return {
        name: drawn(name, shape, mean=float(shape == (width,) and "weight" in name)) for name, shape in shapes.items()
    }


def write_published(
    folder: Path, channels: int, heads: int, side: int, width: int, layers: int, inner: int, table: int
) -> Path:
    """model.pt, stat.pt and encoder/ for `side` x `side` cells; `table` is the side of DINOv2's position table."""
    config = Dinov2WithRegistersConfig(
        hidden_size=channels,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        patch_size=14,
        image_size=14 * table,
        mlp_ratio=2,
    )
    encoder = Dinov2WithRegistersModel(config)
    for name, value in encoder.named_parameters():
        value.data = drawn(name, tuple(value.shape), mean=float("norm" in name or "lambda" in name))
    encoder.save_pretrained(folder / "encoder")
    torch.save(decoder_weights(channels, width, layers, inner, side * side), folder / "model.pt")
    shape = channels, side, side
    torch.save({"mean": drawn("mean", shape, std=0.3), "var": drawn("var", shape).abs() + 0.5}, folder / "stat.pt")
    return folder
