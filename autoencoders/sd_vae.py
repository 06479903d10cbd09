"""The image autoencoder of Stable Diffusion, whose latents SiT, REPA and the released Self-Flow model are trained on.

8 x 8 pixels become a cell of 4 channels; training sees samples of the posterior times 0.18215 (REPA's train.py).
The authors' files (CompVis) do not hold that number: those of SDXL, which has another one, look the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentNormalization, LatentSpec, Size, image_grid
from autoencoders.diffusers_weights import Constants
from autoencoders.ldm_layout import ldm_name, ldm_settings
from autoencoders.patches import to_maps, to_tokens
from autoencoders.pretrained import Pretrained, VariationalConfig
from autoencoders.published import Layout, read_network

SPEC = LatentSpec(channels=4, stride=(1, 8, 8))
SCALE = 0.18215
LAYOUT = Layout(
    files=(
        "vae-ft-mse-840000-ema-pruned.safetensors",
        "vae-ft-mse-840000-ema-pruned.ckpt",
        "vae-ft-ema-560000-ema-pruned.safetensors",
        "vae-ft-ema-560000-ema-pruned.ckpt",
    ),
    class_name="AutoencoderKL",
    settings=ldm_settings,
    name=ldm_name,
    prefix="first_stage_model.",  # in a file of all of Stable Diffusion
    ignored=("loss.", "model_ema.decay", "model_ema.num_updates"),
)


def _constants(config: Any) -> Constants:
    return {
        "image channels": ((config.in_channels, config.out_channels), (3, 3)),
        "latent_channels": (config.latent_channels, SPEC.channels),
        "pixels per cell": (2 ** (len(config.block_out_channels) - 1), SPEC.stride[1]),
        "scaling_factor": (config.scaling_factor, SCALE),
    }


class SDVAE(Pretrained):
    name = "sd_vae"
    spec = SPEC
    media = (None, 3, None, None)
    patch = 2
    overlap = 32
    published = (
        "AutoencoderKL",  # stabilityai/sd-vae-ft-ema
        {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 4,
        },
    )

    def grid(self, size: Size) -> Size:
        return image_grid(size, SPEC.stride[1])

    @staticmethod
    def read(path: str) -> nn.Module:
        return read_network("sd_vae", path, LAYOUT, _constants)

    @staticmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        posterior = network.encode(media).latent_dist
        return to_tokens(torch.cat([posterior.mean, posterior.std], dim=1))  # (B, N, 2 C)

    @staticmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        return network.decode(to_maps(latents, grid[1:])).sample

    @staticmethod
    def published_normalization(network: Any) -> LatentNormalization:
        return LatentNormalization(torch.zeros(SPEC.channels), torch.full((SPEC.channels,), 1 / SCALE))


@dataclass(frozen=True, kw_only=True)
class SDVAEConfig(VariationalConfig):
    autoencoder = SDVAE

    kind: str = "sd_vae"
    posterior: str = "sample"
