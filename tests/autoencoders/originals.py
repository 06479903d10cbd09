"""Narrow networks as files of their authors' own layouts, and what the authors' code does with them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.autoencoders.recipe import weights

GOLDEN = Path(__file__).parent / "golden"
# kind -> the published name of its file
FILES = {"flux2": "ae.safetensors", "wan22": "Wan2.2_VAE.pth", "sd_vae": "vae-ft-mse-840000-ema-pruned.ckpt"}
# modality and media of the golden values
MEDIA = {"flux2": (1, 3, 48, 32), "wan22": (1, 3, 9, 32, 16), "sd_vae": (1, 3, 48, 32)}


def golden(kind: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{kind}.safetensors")


def shapes(kind: str, width: str = "narrow") -> dict[str, list[int]]:
    return json.loads((GOLDEN / f"{kind}.json").read_text())[width]


def narrow(kind: str) -> dict[str, Tensor]:
    """The state dict in the authors' layout."""
    return weights(shapes(kind))


def write(state: dict[str, Tensor], file: Path) -> Path:
    """As the authors' files are written."""
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "global_step": 5} if file.suffix == ".ckpt" else state, file)
    return file
