"""A small RAE in the published layout: weights that depend on their names only, so golden values can belong to them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Dinov2WithRegistersConfig

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


def encoder_weights(channels: int, layers: int, table: int, patch: int = 14) -> dict:
    """The published state dict of DINOv2 with registers."""
    shapes = {
        "embeddings.cls_token": (1, 1, channels),
        "embeddings.mask_token": (1, channels),
        "embeddings.register_tokens": (1, 4, channels),
        "embeddings.position_embeddings": (1, table * table + 1, channels),
        "embeddings.patch_embeddings.projection.weight": (channels, 3, patch, patch),
        "layernorm.weight": (channels,),
    }
    for i in range(layers):
        layer = f"encoder.layer.{i}."
        shapes |= {f"{layer}attention.attention.{name}.weight": (channels,) * 2 for name in ("query", "key", "value")}
        shapes[f"{layer}attention.output.dense.weight"] = (channels, channels)
        shapes |= {f"{layer}{name}.weight": (channels,) for name in ("norm1", "norm2")}
        shapes |= {f"{layer}layer_scale{j}.lambda1": (channels,) for j in (1, 2)}
        shapes |= {
            f"{layer}mlp.fc1.weight": (2 * channels, channels),
            f"{layer}mlp.fc2.weight": (channels, 2 * channels),
        }
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if "weight" in name}
    scales = ("norm.weight", "norm1.weight", "norm2.weight", "lambda1")
    return {name: drawn(name, shape, mean=float(name.endswith(scales))) for name, shape in shapes.items()}


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
    config.save_pretrained(folder / "encoder")
    save_file(encoder_weights(channels, layers, table), folder / "encoder" / "model.safetensors", {"format": "pt"})
    torch.save(decoder_weights(channels, width, layers, inner, side * side), folder / "model.pt")
    shape = channels, side, side
    torch.save({"mean": drawn("mean", shape, std=0.3), "var": drawn("var", shape).abs() + 0.5}, folder / "stat.pt")
    return folder
