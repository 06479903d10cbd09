"""The video autoencoder of Wan 2.2 (TI2V-5B): blocks of 4 frames and 16 x 16 pixels become 48 channels.

Time is causal: T = 1 + 4 k frames become 1 + k, and the first cells hold the first frame alone, so that it can be
given. Normalized with the mean and deviation of every channel that are published with the weights
(Wan2.2, wan/modules/vae2_2.py); the posterior's mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentNormalization, LatentSpec, Size, divide
from autoencoders.diffusers_weights import Constants
from autoencoders.patches import to_maps, to_tokens
from autoencoders.pretrained import Pretrained, VariationalConfig
from autoencoders.published import Layout, State, count, read_network

SPEC = LatentSpec(channels=48, stride=(4, 16, 16))
PATCH = 2  # pixels of a side that the network folds into channels before its first layer
MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)

# Names of diffusers -> of the published file, in which a level's last module changes the resolution.
RENAMED = (
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"down_blocks\.(\d+)\.resnets", r"downsamples.\1.downsamples"),
    (r"up_blocks\.(\d+)\.resnets", r"upsamples.\1.upsamples"),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
)


def _name(name: str, settings: dict[str, Any]) -> str:
    blocks = settings["num_res_blocks"]  # a level of the decoder has one more
    name = re.sub(r"down_blocks\.(\d+)\.downsampler", rf"downsamples.\1.downsamples.{blocks}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsampler", rf"upsamples.\1.upsamples.{blocks + 1}", name)
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def _settings(state: State) -> dict[str, Any]:
    """Arguments of AutoencoderKLWan, from the shapes in a file; the statistics are those of the authors' code."""
    base, levels = state["encoder.conv1.weight"].shape[0], count(state, "encoder.downsamples.")
    width = "encoder.downsamples.{}.downsamples.0.residual.6.weight"
    # The last level does not change the resolution.
    blocks = count(state, f"encoder.downsamples.{levels - 1}.downsamples.")
    halved = [
        f"encoder.downsamples.{level}.downsamples.{blocks}.time_conv.weight" in state for level in range(levels - 1)
    ]
    return {
        "base_dim": base,
        "decoder_base_dim": state["decoder.head.0.gamma"].shape[0],
        "z_dim": state["conv2.weight"].shape[0],
        "dim_mult": [state[width.format(level)].shape[0] // base for level in range(levels)],
        "num_res_blocks": blocks,
        "temperal_downsample": halved,
        "is_residual": True,
        "in_channels": state["encoder.conv1.weight"].shape[1],
        "out_channels": state["decoder.head.2.weight"].shape[0],
        "patch_size": PATCH,
        "scale_factor_temporal": 2 ** sum(halved),
        "scale_factor_spatial": PATCH * 2 ** (levels - 1),
        "latents_mean": list(MEAN),
        "latents_std": list(STD),
    }


LAYOUT = Layout(("Wan2.2_VAE.pth",), "AutoencoderKLWan", _settings, _name)


def _constants(config: Any) -> Constants:
    return {
        "video channels": ((config.in_channels, config.out_channels), (12, 12)),  # 3 times patch_size squared
        "patch_size": (config.patch_size, PATCH),
        "z_dim": (config.z_dim, SPEC.channels),
        "scale factors": ((config.scale_factor_temporal, config.scale_factor_spatial), SPEC.stride[:2]),
        "numbers of latents_mean and latents_std": (
            (len(config.latents_mean), len(config.latents_std)),
            (SPEC.channels, SPEC.channels),
        ),
    }


class Wan22(Pretrained):
    name = "wan22"
    spec = SPEC
    media = (None, None, 3, None, None)
    overlap = 16
    published = (
        "AutoencoderKLWan",  # Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae
        {
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "dim_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [False, True, True],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 16,
            "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
    )

    def grid(self, size: Size) -> Size:
        frames, rows, columns = SPEC.stride
        t = 1 + divide("frames", size[0], frames, alone=1)
        return t, divide("height", size[1], rows), divide("width", size[2], columns)

    @staticmethod
    def read(path: str) -> nn.Module:
        return read_network("wan22", path, LAYOUT, _constants)

    @staticmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        posterior = network.encode(media.transpose(1, 2)).latent_dist  # from (B, 3, T, H, W)
        return to_tokens(torch.cat([posterior.mean, posterior.std], dim=1))  # (B, N, 2 C)

    @staticmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        return network.decode(to_maps(latents, grid)).sample.transpose(1, 2)  # (B, T, 3, H, W)

    @staticmethod
    def published_normalization(network: Any) -> LatentNormalization:
        return LatentNormalization(torch.tensor(network.config.latents_mean), torch.tensor(network.config.latents_std))


@dataclass(frozen=True, kw_only=True)
class Wan22Config(VariationalConfig):
    autoencoder = Wan22

    kind: str = "wan22"
