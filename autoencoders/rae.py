"""The representation autoencoder RAE: patches of DINOv2 as latents, and a ViT decoder that turns them back into images.

An image of 256 x 256 pixels is shrunk to 224 x 224 and becomes 16 x 16 tokens of 768 channels: the last hidden states
of DINOv2-B with registers, its last layer norm without scale and shift, class and register tokens left out. Tokens are
normalized per channel and position with statistics that are published beside the decoder (RAE, src/stage1/rae.py).

Two layouts are read: that of diffusers, and the published one, a folder with

    model.pt    the decoder (decoders/dinov2/wReg_base/ViTXL_n08/model.pt)
    stat.pt     mean and variance of the latents (stats/dinov2/wReg_base/imagenet1k/stat.pt)
    encoder/    facebook/dinov2-with-registers-base; fetched from the hub where it is absent
"""

from __future__ import annotations

import pickle
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from autoencoders.base import LatentNormalization, LatentSpec, Size
from autoencoders.diffusers_weights import Constants, diffusers_class, read_diffusers, refuse_others
from autoencoders.pretrained import Pretrained, PretrainedConfig
from core.errors import CheckpointError, ConfigError, ShapeError, first_line
from core.optional import need

SPEC = LatentSpec(channels=768, stride=(1, 16, 16))
SIDE = 256  # pixels of an image
SHRUNK = 224  # what the encoder sees
ENCODER_PATCH = 14
REGISTERS = 4
ENCODER_ON_THE_HUB = "facebook/dinov2-with-registers-base"
EPSILON = 1e-5
LAYOUT = "or the published files: model.pt (decoder), stat.pt (statistics) and encoder/ (DINOv2 with registers)"

# Names inside a decoder layer: published -> diffusers.
RENAMED = {
    "attention.attention.query": "attention.to_q",
    "attention.attention.key": "attention.to_k",
    "attention.attention.value": "attention.to_v",
    "attention.output.dense": "attention.to_out.0",
}


def _constants(config: Any) -> Constants:
    return {
        "encoder_type": (config.encoder_type, "dinov2"),
        "encoder_hidden_size": (config.encoder_hidden_size, SPEC.channels),
        "encoder_patch_size": (config.encoder_patch_size, ENCODER_PATCH),
        "encoder_input_size": (config.encoder_input_size, SHRUNK),
        "patch_size": (config.patch_size, SPEC.stride[1]),
        "num_channels": (config.num_channels, 3),
    }


def _no_initialization() -> AbstractContextManager[Any]:
    """transformers 4 fails to initialize a network that diffusers builds to overwrite: keep it from trying."""
    try:
        # Only transformers 4 has it.
        from transformers.modeling_utils import no_init_weights  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:  # transformers 5, which does not need it, or no transformers
        return nullcontext()
    return no_init_weights()


def read_published(folder: Path) -> nn.Module:
    """The published layout as an AutoencoderRAE of diffusers, with the decoder's sizes taken from its weights."""
    encoder = _read_encoder(folder)
    weights = {_renamed(name): value for name, value in _load(folder / "model.pt").items()}
    layers = {int(name.split(".")[1]) for name in weights if name.startswith("decoder_layers.")}
    try:
        width = weights["decoder_norm.weight"].shape[0]
        network = diffusers_class("rae", "AutoencoderRAE")(
            encoder_hidden_size=encoder.config.hidden_size,
            encoder_patch_size=encoder.config.patch_size,
            encoder_num_hidden_layers=encoder.config.num_hidden_layers,
            encoder_input_size=isqrt(weights["decoder_pos_embed"].shape[1] - 1) * encoder.config.patch_size,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=len(layers),
            decoder_num_attention_heads=12 if width == 768 else 16,  # of ViT-B; of ViT-L and ViT-XL
            decoder_intermediate_size=weights["decoder_layers.0.intermediate.dense.weight"].shape[0],
            patch_size=isqrt(weights["decoder_pred.weight"].shape[0] // 3),
        )
        network.encoder = encoder
        # A fixed table that diffusers computes; the published one may differ in its last bits.
        network.decoder.decoder_pos_embed.copy_(weights.pop("decoder_pos_embed"))
        network.decoder.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / 'model.pt'}: not the weights of an RAE decoder: {first_line(error)}"
        ) from error
    statistics = _load(folder / "stat.pt")
    if not {"mean", "var"} <= set(statistics):
        raise CheckpointError(f"{folder / 'stat.pt'}: expected the tensors mean and var, got {', '.join(statistics)}")
    network.register_buffer("_latents_mean", statistics["mean"].float())
    # The network adds EPSILON to the deviation, RAE to the variance.
    network.register_buffer("_latents_std", (statistics["var"].float() + EPSILON).sqrt() - EPSILON)
    return network


def _read_encoder(folder: Path) -> Any:
    """DINOv2 with registers, its last layer norm without scale and shift."""
    place = folder / "encoder"
    transformers = need("transformers", "autoencoder.kind: 'rae'", "The kinds pixels, space_time_pixels and mdct work")
    try:
        encoder, report = transformers.Dinov2WithRegistersModel.from_pretrained(
            str(place) if place.is_dir() else ENCODER_ON_THE_HUB, output_loading_info=True
        )
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"autoencoder.path: kind 'rae' needs {ENCODER_ON_THE_HUB} (config.json and model.safetensors) in {place}, "
            f"or a way to the hub: {first_line(error)}"
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(f"{place}: these weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    encoder.layernorm.weight = encoder.layernorm.bias = None
    return encoder.float()


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"autoencoder.path: {path.parent} lacks {path.name}; kind 'rae' needs {LAYOUT[3:]}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read: {first_line(error)}") from error


def _renamed(name: str) -> str:
    for published, ours in RENAMED.items():
        name = name.replace(published, ours)
    return name


class RAE(Pretrained):
    name = "rae"
    spec = SPEC
    media = (None, 3, None, None)

    def grid(self, size: Size) -> Size:
        if size != (1, SIDE, SIDE):
            raise ShapeError(f"{size[1]} x {size[2]}: rae was trained for images of one size; legal: {SIDE} x {SIDE}")
        return 1, SIDE // SPEC.stride[1], SIDE // SPEC.stride[2]

    @staticmethod
    def read(path: str) -> nn.Module:
        if not (Path(path) / "model.pt").is_file():
            with _no_initialization():
                return read_diffusers("rae", path, "AutoencoderRAE", _constants, LAYOUT)
        network = read_published(Path(path))
        refuse_others("rae", path, _constants(network.config))
        return network

    @staticmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        side = network.config.encoder_input_size
        pixels = functional.interpolate((media + 1) / 2, (side, side), mode="bicubic", align_corners=False)
        hidden = network.encoder((pixels - network.encoder_mean) / network.encoder_std).last_hidden_state
        return hidden[:, 1 + REGISTERS :]

    @staticmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        patches = network.decoder(latents).logits  # (B, N, p p 3)
        p = network.config.patch_size
        pixels = rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[1], w=grid[2], p=p, q=p)
        return (pixels * network.encoder_std + network.encoder_mean) * 2 - 1

    @staticmethod
    def published_normalization(network: Any) -> LatentNormalization | None:
        mean, std = network.get_buffer("_latents_mean"), network.get_buffer("_latents_std") + EPSILON
        if mean.numel() == 1:
            return None  # saved without statistics
        channels = network.config.encoder_hidden_size
        # (C, h, w) or (1, C, h, w) -> (N, C); (C,) or (C, 1, 1) -> (C,)
        return LatentNormalization(*(value.reshape(channels, -1).T.squeeze(0).contiguous() for value in (mean, std)))


@dataclass(frozen=True, kw_only=True)
class RAEConfig(PretrainedConfig):
    autoencoder = RAE

    kind: str = "rae"
