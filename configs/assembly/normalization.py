"""Statistics of the latents of each modality: stored with the run, published with the weights, or measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoencoders.base import LatentNormalization
from configs.assembly.adapters import Adapters
from configs.schema import Config
from modalities.data.loader import measure_normalization
from modalities.streams import Stream

NONE_KEPT: Mapping[str, LatentNormalization] = MappingProxyType({})


def measured(
    config: Config, streams: Mapping[str, Stream], kept: Mapping[str, LatentNormalization] = NONE_KEPT
) -> dict[str, LatentNormalization]:
    """modality -> statistics of the first part that has it; those that are `kept` are not measured."""
    found: dict[str, LatentNormalization] = {}
    for stream, name, part in config.parts():
        if part.modality in kept:
            found[part.modality] = kept[part.modality]
        elif part.modality not in found:
            found[part.modality] = measure_normalization(
                stream, streams[stream], name, config.seed, floor=part.std_floor
            )
    return found


def stored(extra: Mapping, adapters: Adapters) -> dict[str, LatentNormalization]:
    """Statistics of a checkpoint, and those published with an autoencoder's weights."""
    found = {name: LatentNormalization.from_dict(values) for name, values in extra["normalization"].items()}
    for parts in adapters.values():
        for adapter in parts.values():
            if adapter.modality not in found:
                values = adapter.normalization
                assert values is not None  # only published ones are left out of a checkpoint
                found[adapter.modality] = values
    return found


def published(config: Config, adapters: Adapters) -> set[str]:
    """Modalities whose statistics come with an autoencoder's weights that training reads."""
    return {
        adapter.modality
        for stream, parts in adapters.items()
        for adapter in parts.values()
        if not config.streams[stream].data.holds_latents and adapter.normalization is not None
    }
