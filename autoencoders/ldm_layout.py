"""The tensors of an image autoencoder as latent diffusion names them (CompVis, ldm/modules/diffusionmodules/model.py).

Stable Diffusion's autoencoder and, with its two outer convolutions elsewhere, that of FLUX.2.
"""

from __future__ import annotations

import re
from typing import Any

from autoencoders.published import State, count

# Names of diffusers -> of latent diffusion; levels of the decoder are counted from the last one there.
RENAMED = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def ldm_name(name: str, settings: dict[str, Any]) -> str:
    """A tensor of diffusers' AutoencoderKL -> its name in latent diffusion."""
    for pattern, theirs in RENAMED:
        name = re.sub(pattern, theirs, name)
    last = len(settings["block_out_channels"]) - 1
    return re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)


def ldm_settings(state: State) -> dict[str, Any]:
    """Arguments of AutoencoderKL, from the shapes in a file. The decoder is as wide as the encoder."""
    levels = count(state, "encoder.down.")
    widths = tuple(state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "layers_per_block": count(state, "encoder.down.0.block."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
