"""A narrow autoencoder of SongBloom in the layout of its authors: settings as JSON and a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def settings(multiples: tuple[int, ...] = (1, 1, 1, 1, 1), decoder_channels: int = 8, **decoder) -> dict:
    """What stable_audio_1920_vae.json says, with fewer channels; `decoder` changes settings of the decoder.

    The published sizes are multiples 1, 2, 4, 8, 16 and 128 channels.
    """
    sizes = {"c_mults": list(multiples), "strides": [2, 4, 4, 6, 10], "use_snake": True}
    encoder = {"in_channels": 2, "channels": 128, "latent_dim": 128, **sizes}
    ends = {"out_channels": 2, "channels": decoder_channels, "latent_dim": 64, "final_tanh": False}
    return {
        "model_type": "autoencoder",
        "sample_rate": 48_000,
        "model": {
            "encoder": {"type": "oobleck", "config": encoder},
            "decoder": {"type": "oobleck", "config": {**ends, **sizes, **decoder}},
            "bottleneck": {"type": "vae"},
            "latent_dim": 64,
            "downsampling_ratio": 1920,
            "io_channels": 2,
        },
    }


def write(
    folder: Path, state: object, described: dict | None = None, name: str = "autoencoder_music_dsp1920.ckpt"
) -> Path:
    """Both files, in `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "stable_audio_1920_vae.json").write_text(json.dumps(described or settings()))
    torch.save(state, folder / name)
    return folder
