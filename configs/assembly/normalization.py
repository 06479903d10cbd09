"""Statistics of the latents of each modality: stored with the run, published with the weights, or measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoencoders.base import Whitening
from configs.assembly.adapters import Adapters
from configs.schema import Config
from modalities.data.loader import measure_whitening
from modalities.streams import Stream

NONE_KEPT: Mapping[str, Whitening] = MappingProxyType({})


def measured(
    config: Config, streams: Mapping[str, Stream], kept: Mapping[str, Whitening] = NONE_KEPT
) -> dict[str, Whitening]:
    """modality -> statistics of the first part that has it; those that are `kept` are not measured."""
    found: dict[str, Whitening] = {}
    for stream, name, part in config.parts():
        if part.modality in kept:
            found[part.modality] = kept[part.modality]
        elif part.modality not in found:
            found[part.modality] = measure_whitening(stream, streams[stream], name, config.seed, floor=part.std_floor)
    return found


def stored(extra: Mapping, adapters: Adapters) -> dict[str, Whitening]:
    """Statistics of a checkpoint, and those published with an autoencoder's weights."""
    found = {name: Whitening.from_dict(values) for name, values in extra["whitening"].items()}
    for parts in adapters.values():
        for adapter in parts.values():
            if adapter.modality not in found:
                found[adapter.modality] = adapter.whitening
    return found


def published(config: Config, adapters: Adapters) -> set[str]:
    """Modalities whose statistics come with an autoencoder's weights that training reads."""
    return {
        adapter.modality
        for stream, parts in adapters.items()
        for adapter in parts.values()
        if not config.streams[stream].data.holds_latents and adapter.whitening is not None
    }
