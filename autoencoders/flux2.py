"""The image autoencoder of FLUX.2: 8 x 8 pixels become 32 channels, and 2 x 2 of these one cell of 128 channels.

Cells are normalized with the running statistics of a batch norm that is stored with the weights, not with a scale
(flux2, src/flux2/autoencoder.py: epsilon 1e-4, channels of a cell in the order (c p1 p2), the posterior's mean).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentNormalization, LatentSpec, Size, image_grid
from autoencoders.diffusers_weights import Constants
from autoencoders.ldm_layout import ldm_name, ldm_settings
from autoencoders.patches import patchify, to_maps, to_tokens, unpatchify
from autoencoders.pretrained import Pretrained, VariationalConfig
from autoencoders.published import Layout, State, count, read_network

SPEC = LatentSpec(channels=128, stride=(1, 16, 16))
SIDE = 2  # of the square of inner cells that is one cell here
EPSILON = 1e-4


def _settings(state: State) -> dict[str, Any]:
    settings = ldm_settings(state)
    widths = tuple(
        state[f"decoder.up.{level}.block.0.conv2.weight"].shape[0] for level in range(count(state, "decoder.up."))
    )
    if widths != settings["block_out_channels"]:  # a decoder made smaller
        settings["decoder_block_out_channels"] = widths
    return settings


def _name(name: str, settings: dict[str, Any]) -> str:
    outer = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    part, _, rest = name.partition(".")
    return f"{outer[part]}.{rest}" if part in outer else ldm_name(name, settings)


LAYOUT = Layout(("ae.safetensors",), "AutoencoderKLFlux2", _settings, _name)


def _constants(config: Any) -> Constants:
    return {
        "image channels": ((config.in_channels, config.out_channels), (3, 3)),
        "latent_channels": (config.latent_channels, SPEC.channels // SIDE**2),
        "pixels per cell": (2 ** (len(config.block_out_channels) - 1), SPEC.stride[1] // SIDE),
        "patch_size": (list(config.patch_size), [SIDE, SIDE]),
        "batch_norm_eps": (config.batch_norm_eps, EPSILON),
    }


class Flux2(Pretrained):
    name = "flux2"
    spec = SPEC
    media = (None, 3, None, None)
    overlap = 16
    published = ("AutoencoderKLFlux2", {})  # black-forest-labs/FLUX.2-dev, vae: the class's own sizes

    def grid(self, size: Size) -> Size:
        return image_grid(size, SPEC.stride[1])

    @staticmethod
    def read(path: str) -> nn.Module:
        return read_network("flux2", path, LAYOUT, _constants)

    @staticmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        posterior = network.encode(media).latent_dist
        grid = 1, *posterior.mean.shape[-2:]
        return torch.cat([patchify(to_tokens(maps), grid, SIDE) for maps in (posterior.mean, posterior.std)], dim=-1)

    @staticmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        inner = 1, grid[1] * SIDE, grid[2] * SIDE
        return network.decode(to_maps(unpatchify(latents, inner, SIDE), inner[1:])).sample

    @staticmethod
    def published_normalization(network: Any) -> LatentNormalization:
        return LatentNormalization(network.bn.running_mean.clone(), (network.bn.running_var + EPSILON).sqrt())


@dataclass(frozen=True, kw_only=True)
class Flux2Config(VariationalConfig):
    autoencoder = Flux2

    kind: str = "flux2"
