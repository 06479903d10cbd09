"""What frozen networks cost, without their weights: networks of the published sizes, run on tensors without storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoencoders.config import AutoencoderConfig
from autoencoders.diffusers_weights import diffusers_class
from autoencoders.pretrained import PretrainedConfig
from core.errors import ConfigError
from core.optional import need
from modalities.conditioning import TextEncoder


def autoencoder_flops(config: AutoencoderConfig, media: tuple[int, ...]) -> int | None:
    """FLOPs of encoding media of a shape (B, *media); None for a kind whose published sizes are not known here.

    Raises ConfigError without diffusers. Tiles, which overlap, are not looked at.
    """
    if not isinstance(config, PretrainedConfig) or config.autoencoder.published is None:
        return None
    name, sizes = config.autoencoder.published
    network_class = diffusers_class(config.kind, name)
    return _count(
        lambda: network_class(**sizes).eval(),
        lambda network: config.autoencoder.run_encoder(network, torch.empty(media)),
    )


def text_flops(encoder: TextEncoder, readable: bool) -> int | None:
    """FLOPs of one caption of the greatest length; None for an encoder whose published sizes are not known here.

    Args:
        readable: its config.json is at hand, and says more than the kind.

    Raises ConfigError without transformers, or for a config.json that cannot be read.
    """
    transformers = need("transformers", "condition.encoder", "The byte-level encoder works")
    if readable:
        try:
            settings = transformers.AutoConfig.from_pretrained(encoder.path).get_text_config()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{encoder.path}: {str(error).strip().splitlines()[0]}") from error
    elif encoder.path == encoder.kind.example and encoder.kind.sizes:
        settings = getattr(transformers, encoder.kind.network).config_class(**dict(encoder.kind.sizes))
    else:
        return None
    settings.num_hidden_layers = max(encoder.layers, default=settings.num_hidden_layers)  # those after it are left out

    def run(network: Any) -> None:
        network(input_ids=torch.zeros(1, encoder.length, dtype=torch.int64), **dict(encoder.kind.arguments))

    return _count(lambda: getattr(transformers, encoder.kind.network)(settings).eval(), run)


def _count(make: Callable[[], Any], run: Callable[[Any], object]) -> int:
    with FakeTensorMode(), torch.no_grad():
        network = make()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run(network)
    return counter.get_total_flops()
