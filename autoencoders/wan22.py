"""The video autoencoder of Wan 2.2 (TI2V-5B): blocks of 4 frames and 16 x 16 pixels become 48 channels.

Time is causal: T = 1 + 4 k frames become 1 + k, and the first cells hold the first frame alone, so that it can be
given. Whitened with the mean and deviation of every channel that are published with the weights
(Wan2.2, wan/modules/vae2_2.py); the posterior's mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentSpec, Size, Whitening, divide
from autoencoders.diffusers_weights import Constants, read_diffusers
from autoencoders.patches import to_maps, to_tokens
from autoencoders.pretrained import Kind

SPEC = LatentSpec(channels=48, stride=(4, 16, 16))


def _grid(size: Size) -> Size:
    frames, rows, columns = SPEC.stride
    t = 1 + divide("frames", size[0], frames, alone=1)
    return t, divide("height", size[1], rows), divide("width", size[2], columns)


def _constants(config: Any) -> Constants:
    return {
        "video channels": ((config.in_channels, config.out_channels), (12, 12)),  # 3 times patch_size squared
        "patch_size": (config.patch_size, 2),
        "z_dim": (config.z_dim, SPEC.channels),
        "scale factors": ((config.scale_factor_temporal, config.scale_factor_spatial), SPEC.stride[:2]),
        "numbers of latents_mean and latents_std": (
            (len(config.latents_mean), len(config.latents_std)),
            (SPEC.channels, SPEC.channels),
        ),
    }


def _read(path: str) -> nn.Module:
    return read_diffusers("wan22", path, "AutoencoderKLWan", _constants)


def _encode(network: Any, media: Tensor) -> Tensor:
    posterior = network.encode(media.transpose(1, 2)).latent_dist  # from (B, 3, T, H, W)
    return to_tokens(torch.cat([posterior.mean, posterior.std], dim=1))  # (B, N, 2 C)


def _decode(network: Any, latents: Tensor, grid: Size) -> Tensor:
    return network.decode(to_maps(latents, grid)).sample.transpose(1, 2)  # (B, T, 3, H, W)


def _whitening(network: Any) -> Whitening:
    return Whitening(torch.tensor(network.config.latents_mean), torch.tensor(network.config.latents_std))


WAN22 = Kind(
    name="wan22",
    spec=SPEC,
    media=(None, None, 3, None, None),
    grid=_grid,
    read=_read,
    encode=_encode,
    decode=_decode,
    whitening=_whitening,
    posterior="mean",
)
