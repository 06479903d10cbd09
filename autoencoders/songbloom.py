"""The audio autoencoder of SongBloom (`stable_audio_1920_vae`): 1920 stereo samples at 48 kHz become 64 channels.

25 tokens a second. Its latents are not scaled by their publishers, so the training data is measured; they take samples
of the posterior, whose deviation is softplus(scale) + 1e-4 (SongBloom/models/vae_frontend/bottleneck.py, vae_sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.base import LatentSpec, Size, divide
from autoencoders.diffusers_weights import Constants, read_diffusers
from autoencoders.patches import to_maps, to_tokens
from autoencoders.pretrained import Pretrained, VariationalConfig
from autoencoders.songbloom_original import SETTINGS, WEIGHTS, find_original, read_original

SPEC = LatentSpec(channels=64, stride=(1920, 1, 1))
SAMPLE_RATE = 48_000
CHANNELS = 2
REACH = 9  # cells that a cell of the result depends on at each side: 6.3 in the encoder, 8.3 in the decoder


def _constants(config: Any) -> Constants:
    return {
        "audio_channels": (config.audio_channels, CHANNELS),
        "sampling_rate": (config.sampling_rate, SAMPLE_RATE),
        "odd downsampling_ratios": ([ratio for ratio in config.downsampling_ratios if ratio % 2], []),
        "samples per token": (prod(config.downsampling_ratios), SPEC.stride[0]),
        "decoder_input_channels": (config.decoder_input_channels, SPEC.channels),
        "encoder_hidden_size": (config.encoder_hidden_size, 2 * SPEC.channels),  # mean and deviation
    }


class SongBloom(Pretrained):
    name = "songbloom"
    spec = SPEC
    media = (None, CHANNELS, None)
    cut_axes = (0,)
    overlap = 4 * REACH  # a quarter of it is thrown away at each side

    def grid(self, size: Size) -> Size:
        return divide("samples", size[0], SPEC.stride[0]), 1, 1

    @staticmethod
    def read(path: str) -> nn.Module:
        if original := find_original(path):
            return read_original("songbloom", *original)
        layout = f"or a folder with {SETTINGS} and {WEIGHTS}, as SongBloom publishes them"
        return read_diffusers("songbloom", path, "AutoencoderOobleck", _constants, layout)

    @staticmethod
    def run_encoder(network: Any, media: Tensor) -> Tensor:
        posterior = network.encode(media).latent_dist
        return to_tokens(torch.cat([posterior.mean, posterior.std], dim=1))  # (B, N, 2 C)

    @staticmethod
    def run_decoder(network: Any, latents: Tensor, grid: Size) -> Tensor:
        return network.decode(to_maps(latents, grid[:1])).sample

    @staticmethod
    def published_normalization(network: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class SongBloomConfig(VariationalConfig):
    autoencoder = SongBloom

    kind: str = "songbloom"
    posterior: str = "sample"

    def media_problems(self, media: Any) -> list[str]:
        given = (("sample_rate", media.sample_rate, SAMPLE_RATE), ("channels", media.channels, CHANNELS))
        return [
            f"{name}: {seen} must be {wanted} for autoencoder.kind {self.kind!r}"
            for name, seen, wanted in given
            if seen != wanted
        ]
