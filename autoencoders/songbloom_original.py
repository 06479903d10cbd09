"""SongBloom's autoencoder as it is published: its settings as JSON and a checkpoint of stable-audio-tools.

Names of tensors and defaults of settings are those of SongBloom, SongBloom/models/vae_frontend/autoencoders.py. Its
network is diffusers' AutoencoderOobleck, which computes the same; names and a few choices differ.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from autoencoders.diffusers_weights import HUB_NAME, Constants, refuse_others
from autoencoders.published import Layout, State, load_tensors, network_from
from core.errors import ConfigError

SETTINGS = "stable_audio_1920_vae.json"
WEIGHTS = "autoencoder_music_dsp1920.ckpt"
# Where the autoencoder lies in a checkpoint: in its trainer, in a model that was trained on its latents, or alone.
PREFIXES = ("autoencoder.", "pretransform.model.", "")

_DEFAULTS: dict[str, dict[str, Any]] = {  # of the original, for what its settings leave out
    "encoder": {"in_channels": 2, "channels": 128, "latent_dim": 32, "c_mults": [1, 2, 4, 8], "strides": [2, 4, 8, 8]},
    "decoder": {"out_channels": 2, "channels": 128, "latent_dim": 32, "c_mults": [1, 2, 4, 8], "strides": [2, 4, 8, 8]},
}
_BLOCKS = {  # layers of a block, in diffusers' names
    "encoder": ("res_unit1", "res_unit2", "res_unit3", "snake1", "conv1"),
    "decoder": ("snake1", "conv_t1", "res_unit1", "res_unit2", "res_unit3"),
}
_UNIT = ("snake1", "conv1", "snake2", "conv2")  # layers of a residual unit
# Weight norm as torch stores it since 2.0 -> as it did before, and as diffusers does.
_NORMS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def find_original(path: str) -> tuple[Path, Path] | None:
    """Settings and weights in a folder or under a name on the hub; None where they are not.

    Raises:
        ConfigError: the settings are there, but not the one file with weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        return _on_the_hub(path)
    if not (folder / SETTINGS).is_file():
        return None
    found = sorted(file.name for file in folder.iterdir() if file.suffix in (".ckpt", ".safetensors"))
    named = [WEIGHTS] if WEIGHTS in found else found
    if len(named) != 1:
        raise ConfigError(
            f"autoencoder.path: {path!r} holds {SETTINGS}, which needs its weights beside it: {WEIGHTS}, or one other "
            f".ckpt or .safetensors file; found {', '.join(found) or 'none'}"
        )
    return folder / SETTINGS, folder / named[0]


def _on_the_hub(path: str) -> tuple[Path, Path] | None:
    if not HUB_NAME.fullmatch(path):
        return None
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(path, SETTINGS)), Path(hf_hub_download(path, WEIGHTS))
    except (ImportError, OSError, ValueError):  # not there, not reachable, or not a repository: diffusers says which
        return None


def read_original(kind: str, settings: Path, weights: Path) -> nn.Module:
    """The network of both files in float32.

    Raises:
        ConfigError: no diffusers, unreadable settings, or a network that is not the one of this kind.
        CheckpointError: the weights are damaged, or not exactly those of the network.
    """
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        model = config["model"]
        encoder, decoder = ({**default, **model[part]["config"]} for part, default in _DEFAULTS.items())
        constants = _constants(config, model, encoder, decoder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"autoencoder.path: {str(settings)!r} does not describe an autoencoder: {error!r}") from error
    refuse_others(kind, str(settings), constants)
    arguments: dict[str, Any] = {
        "encoder_hidden_size": encoder["channels"],
        "downsampling_ratios": encoder["strides"],
        "channel_multiples": encoder["c_mults"],
        "decoder_channels": decoder["channels"],
        "decoder_input_channels": decoder["latent_dim"],
        "audio_channels": decoder["out_channels"],
        "sampling_rate": config["sample_rate"],
    }
    state = _as_diffusers(load_tensors(weights))
    prefix = next(prefix for prefix in PREFIXES if not prefix or any(name.startswith(prefix) for name in state))
    modules = original_modules(len(encoder["strides"]))
    layout = Layout(
        files=(WEIGHTS,),
        class_name="AutoencoderOobleck",
        settings=lambda state: arguments,
        name=lambda name, settings: _original(name, modules),
        prefix=prefix,
    )
    network = network_from(kind, str(weights), state, layout)
    if decoder.get("final_tanh", True):
        last = network.get_submodule("decoder")
        last.conv2 = nn.Sequential(last.get_submodule("conv2"), nn.Tanh())
    return network


def _constants(
    config: dict[str, Any], model: dict[str, Any], encoder: dict[str, Any], decoder: dict[str, Any]
) -> Constants:
    """What diffusers' network and this kind take for granted."""
    strides = encoder["strides"]
    return {
        "types": ((model["encoder"]["type"], model["decoder"]["type"]), ("oobleck", "oobleck")),
        "bottleneck": ((model.get("bottleneck") or {}).get("type"), "vae"),
        "pretransform": (model.get("pretransform"), None),
        "sample_rate": (config.get("sample_rate"), 48_000),
        "audio channels": ((model.get("io_channels"), encoder["in_channels"], decoder["out_channels"]), (2, 2, 2)),
        "latent_dim": ((model.get("latent_dim"), decoder["latent_dim"]), (64, 64)),
        # Mean and scale; the first layer has as many channels in diffusers' network.
        "latent_dim and channels of the encoder": ((encoder["latent_dim"], encoder["channels"]), (128, 128)),
        "strides of the decoder": (decoder["strides"], strides),
        "c_mults of the decoder": (decoder["c_mults"], encoder["c_mults"]),
        "number of c_mults": (len(encoder["c_mults"]), len(strides)),
        "samples per token": ((prod(strides), model.get("downsampling_ratio")), (1920, 1920)),
        # An odd stride makes the decoder's audio shorter than the encoder's.
        "odd strides": ([stride for stride in strides if stride % 2], []),
        "use_snake": ((encoder.get("use_snake", False), decoder.get("use_snake", False)), (True, True)),
        "antialias_activation": (
            (encoder.get("antialias_activation", False), decoder.get("antialias_activation", False)),
            (False, False),
        ),
        "use_nearest_upsample": (decoder.get("use_nearest_upsample", False), False),
        "soft_clip": (model["decoder"].get("soft_clip", False), False),
    }


def _as_diffusers(state: State) -> State:
    """The tensors with one name for weight norm, and parameters of a snake (C,) as diffusers has them: (1, C, 1)."""
    found = {}
    for name, value in state.items():
        for new, old in _NORMS.items():
            name = f"{name.removesuffix(new)}{old}" if name.endswith(new) else name
        found[name] = value[None, :, None] if name.endswith((".alpha", ".beta")) and value.ndim == 1 else value
    return found


def _original(name: str, modules: dict[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{modules[module]}.{tensor}"


def original_modules(blocks: int) -> dict[str, str]:
    """Module of diffusers' AutoencoderOobleck -> the same one of the original.

    >>> original_modules(5)["encoder.block.0.res_unit3.conv2"], original_modules(5)["decoder.conv2"]
    ('encoder.layers.1.layers.2.layers.3', 'decoder.layers.7')
    """
    found = {}
    for part, layers in _BLOCKS.items():
        for i, layer in enumerate(["conv1", *(f"block.{block}" for block in range(blocks)), "snake1", "conv2"]):
            found[f"{part}.{layer}"] = f"{part}.layers.{i}"
        for block in range(blocks):
            for j, layer in enumerate(layers):
                place = f"{part}.layers.{block + 1}.layers.{j}"
                found[f"{part}.block.{block}.{layer}"] = place
                for k, leaf in enumerate(_UNIT):
                    found[f"{part}.block.{block}.{layer}.{leaf}"] = f"{place}.layers.{k}"
    return found
