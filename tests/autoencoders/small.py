"""Every kind of autoencoder with a small network of random weights, saved as its publishers save it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoencoders.kinds import KINDS
from autoencoders.pretrained import Pretrained, PretrainedConfig

diffusers = pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")


def sd_vae(**changes) -> torch.nn.Module:
    return diffusers.AutoencoderKL(
        **{
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "norm_num_groups": 4,
            "layers_per_block": 1,
            **changes,
        }
    )


def flux2() -> torch.nn.Module:
    network = diffusers.AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1)
    network.bn.running_mean.normal_()
    network.bn.running_var.uniform_(0.5, 2)
    return network


def wan22() -> torch.nn.Module:
    return diffusers.AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=torch.linspace(-1, 1, 48).tolist(),
        latents_std=torch.linspace(0.5, 2, 48).tolist(),
    )


def songbloom() -> torch.nn.Module:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=128,
        downsampling_ratios=[2, 4, 4, 6, 10],
        channel_multiples=[1, 1, 1, 1, 1],
        decoder_channels=8,
        decoder_input_channels=64,
        audio_channels=2,
        sampling_rate=48_000,
    )


def rae() -> torch.nn.Module:
    """The encoder's width is fixed by the kind, so one layer must do."""
    return diffusers.AutoencoderRAE(
        encoder_num_hidden_layers=1,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=48,
        latents_mean=torch.linspace(-1, 1, 768).reshape(768, 1, 1),
        latents_std=torch.linspace(0.5, 2, 768).reshape(768, 1, 1),
    )


# modality, maker, media (*shape) that are small and legal
SMALL = {
    "sd_vae": ("image", sd_vae, (3, 32, 48)),
    "flux2": ("image", flux2, (3, 32, 48)),
    "rae": ("image", rae, (3, 256, 256)),
    "wan22": ("video", wan22, (5, 3, 32, 48)),
    "songbloom": ("audio", songbloom, (2, 5760)),
}


def save(kind: str, folder: Path) -> Path:
    """Write small weights of a kind; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        SMALL[kind][1]().save_pretrained(folder)
    return folder


def pretrained(kind: str, folder: Path | str, **settings) -> Pretrained:
    config = KINDS[SMALL[kind][0]][kind](path=str(folder), **settings)
    assert isinstance(config, PretrainedConfig)
    return config.build()
