"""Folders in which diffusers keeps a transformer: config.json, and weights in one file or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import CheckpointError
from core.trunk.flux2 import Flux2Settings
from core.trunk.foreign.files import WeightFile, some
from core.trunk.foreign.kinds import KINDS
from core.trunk.foreign.strict import load_strictly
from core.trunk.mmdit import MMDiT
from core.trunk.wan import Wan, WanConfig, WanSettings

CONFIG, PIPELINE, INSIDE = "config.json", "model_index.json", "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Class -> (kind of its weights, settings that must have one value: others are other networks).
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Flux2Transformer2DModel": (
        "flux2-diffusers",
        {"patch_size": 1, "timestep_guidance_channels": 256, "eps": 1e-6},
    ),
    "WanTransformer3DModel": (
        "wan-diffusers",
        {
            "patch_size": [1, 2, 2],
            "freq_dim": 256,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "pos_embed_seq_len": None,
        },
    ),
}
# What the classes have where a config.json leaves it out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Flux2Transformer2DModel": {
        **CLASSES["Flux2Transformer2DModel"][1],
        "in_channels": 128,
        "out_channels": None,
        "num_layers": 8,
        "num_single_layers": 48,
        "attention_head_dim": 128,
        "num_attention_heads": 48,
        "joint_attention_dim": 15360,
        "mlp_ratio": 3.0,
        "axes_dims_rope": [32, 32, 32, 32],
        "rope_theta": 2000.0,
        "guidance_embeds": True,
    },
    "WanTransformer3DModel": {
        **CLASSES["WanTransformer3DModel"][1],
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "ffn_dim": 13824,
        "num_layers": 40,
    },
}
INTEGERS = (torch.uint8, torch.int8)  # and all floating-point types of less than 16 bits
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def is_folder(path: Path) -> bool:
    """Whether `path` is such a folder, or that of a whole pipeline."""
    return (path / CONFIG).is_file() or (path / PIPELINE).is_file()


def read_folder(path: Path | str) -> WeightFile:
    """The transformer of a folder; `arguments` are its config.json, with what the class adds where it says nothing.

    Args:
        path: the transformer's folder, or that of a whole pipeline with the folder `transformer` in it.

    Raises:
        CheckpointError: files are missing or damaged, the network is of another class or shape than those in
            `CLASSES`, or its weights are quantised.
    """
    path = Path(path)
    folder = path / INSIDE if (path / PIPELINE).is_file() else path
    if not (folder / CONFIG).is_file():
        inside = f", as a pipeline has it in its folder {INSIDE}" if folder != path else ""
        raise CheckpointError(f"{path}: no transformer of diffusers here, which has a {CONFIG}{inside}")
    config = _json(folder / CONFIG)
    name = str(config.get("_class_name"))
    if name not in CLASSES:
        raise CheckpointError(f"{folder / CONFIG}: a network of class {_class(config)}; read are {', '.join(CLASSES)}")
    if "quantization_config" in config:
        told = config["quantization_config"]
        method = told.get("quant_method", "unknown") if isinstance(told, dict) else "unknown"
        raise CheckpointError(
            f"{folder / CONFIG}: quantised weights ({method}); needed are those in bfloat16 or float32"
        )
    config = DEFAULTS[name] | config
    if odd := [key for key, usual in DEFAULTS[name].items() if not _is_like(config[key], usual)]:
        shown = ", ".join(f"{key} {config[key]!r} (such as {DEFAULTS[name][key]!r})" for key in odd)
        raise CheckpointError(f"{folder / CONFIG}: not the settings of a {name}: {shown}")
    wrong = [
        f"{key} {config[key]!r} where {value!r} is read"
        for key, value in CLASSES[name][1].items()
        if _plain(config[key]) != value
    ]
    if wrong:
        raise CheckpointError(f"{folder / CONFIG}: {name} of another shape than the published one: {'; '.join(wrong)}")
    state = _weights(folder)
    check_types(state, str(folder))
    return WeightFile(str(folder), state, config)


def check_types(state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError for quantised weights, named by their type."""
    kinds = {str(value.dtype).removeprefix("torch.") for value in state.values() if _is_quantised(value)}
    if kinds:
        raise CheckpointError(
            f"{source}: weights of type {', '.join(sorted(kinds))}, as quantised files have; needed are those in "
            "bfloat16 or float32"
        )


def _is_quantised(value: Tensor) -> bool:
    return value.dtype in INTEGERS or (value.is_floating_point() and value.element_size() < 2)


def flux2_settings(config: Mapping[str, Any], text_rows: int = 512) -> Flux2Settings:
    """The trunk that a config.json of FLUX.2 describes."""
    return Flux2Settings(
        width=config["num_attention_heads"] * config["attention_head_dim"],
        heads=config["num_attention_heads"],
        double_blocks=config["num_layers"],
        single_blocks=config["num_single_layers"],
        guided=config["guidance_embeds"],
        mlp_ratio=config["mlp_ratio"],
        rope_axes=list(config["axes_dims_rope"]),
        rope_theta=float(config["rope_theta"]),
        text_rows=text_rows,
    )


def wan_settings(config: Mapping[str, Any], text_rows: int = 512) -> WanSettings:
    """The trunk that a config.json of Wan 2.2 describes."""
    return WanSettings(
        width=config["num_attention_heads"] * config["attention_head_dim"],
        heads=config["num_attention_heads"],
        depth=config["num_layers"],
        hidden=config["ffn_dim"],
        text_rows=text_rows,
    )


def load_folder(path: Path | str, text_rows: int = 512) -> MMDiT | Wan:
    """The trunk of a diffusers folder, of the shape that its config.json tells and of its weights' type.

    Args:
        text_rows: S, rows of text of every sample; 512 in both published networks.

    Raises:
        CheckpointError: see `read_folder`, and for tensors that do not fit the config.json.
    """
    file = read_folder(path)
    config = file.arguments
    kind, channels = CLASSES[str(config["_class_name"])][0], int(str(config["in_channels"]))
    with torch.device("meta"):
        if kind == "flux2-diffusers":
            settings = flux2_settings(config, text_rows)
            trunk = MMDiT(settings.trunk_config({"image": channels}, int(str(config["joint_attention_dim"]))))
        else:
            shape = vars(wan_settings(config, text_rows))
            trunk = Wan(WanConfig(**shape, channels={"video": 4 * channels}, text_width=int(str(config["text_dim"]))))
    trunk = trunk.to(next(iter(file.state.values())).dtype).to_empty(device="cpu")
    nn.init.zeros_(trunk.get_buffer(KINDS[kind].absent[0]))
    load_strictly(trunk, KINDS[kind].read(file.state, [], trunk), file.source, KINDS[kind].absent)
    return trunk


def _weights(folder: Path) -> dict[str, Tensor]:
    """Of one file, or of the files that an index names."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return _tensors(folder / WEIGHTS)
    if not index.is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
        there = f"; there is {some(others)}" if others else ""
        raise CheckpointError(f"{folder}: holds neither {WEIGHTS} nor {index.name}{there}")
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map, which says what file holds which tensor")
    names = sorted(set(map(str, places.values())))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: {len(missing)} of the {len(names)} files that {index.name} names are not there: {some(missing)}"
        )
    state: dict[str, Tensor] = {}
    for name in names:
        state |= _tensors(folder / name)
    if lost := [name for name in places if name not in state]:
        raise CheckpointError(
            f"{folder}: {len(lost)} of the {len(places)} tensors that {index.name} names are in none of its files: "
            f"{some(lost)}"
        )
    return state


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no object")
    return found


def _class(config: Mapping[str, Any]) -> str:
    """As diffusers names it, or transformers."""
    architectures = config.get("architectures")
    other = architectures[0] if isinstance(architectures, list) and architectures else "unknown"
    return str(config.get("_class_name") or other)


def _is_like(value: object, usual: object) -> bool:
    """Whether a setting can be one in place of `usual`: numbers above 0, lists of such, true or false."""
    if usual is None or isinstance(usual, (bool, str)):
        return usual is None or isinstance(value, type(usual))
    if isinstance(usual, list):
        return isinstance(value, list) and all(_is_like(each, 1) for each in value)
    allowed = int if isinstance(usual, int) else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool) and value > 0


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
