"""Statistics of the latents of each modality: stored with the run, published with the weights, or measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from autoencoders.base import LatentNormalization
from configs.assembly.adapters import Adapters, media_key
from configs.schema import Config
from core.errors import ConfigError
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
            with named_statistics(media_key(config.streams[stream], stream, name)):
                found[part.modality] = measure_normalization(
                    stream, streams[stream], name, config.seed, floor=part.std_floor
                )
    return found


@contextmanager
def named_statistics(key: str) -> Iterator[None]:
    """Errors about a file of statistics under the key of its media settings."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            f"{key}.{line}" if line.startswith("statistics:") else line for line in error.problems
        ) from error


def stored(extra: Mapping, adapters: Adapters) -> dict[str, LatentNormalization]:
    """Statistics of a checkpoint, and those published with an autoencoder's weights."""
    found = {name: LatentNormalization.from_dict(values) for name, values in extra["normalization"].items()}
    for parts in adapters.values():
        for adapter in parts.values():
            if adapter.modality not in found:
                values = adapter.normalization
                assert values is not None  # only those published with weights are left out of a checkpoint
                found[adapter.modality] = values
    return found


def of_files(adapters: Adapters) -> set[str]:
    """Modalities whose statistics a file holds: of actions and states."""
    found = (adapter for parts in adapters.values() for adapter in parts.values())
    return {adapter.modality for adapter in found if getattr(adapter.config, "statistics", "")}


def check_files(config: Config, adapters: Adapters, found: Mapping[str, LatentNormalization]) -> None:
    """Raise ConfigError where a file of statistics that is at hand is not the one of a checkpoint's statistics.

    Args:
        found: modality -> statistics of the checkpoint, which are the ones that count; the file may be gone.
    """
    problems = []
    for stream, parts in adapters.items():
        for name, adapter in parts.items():
            path, known = getattr(adapter.config, "statistics", ""), found[adapter.modality]
            if path and Path(path).is_file():
                key = media_key(config.streams[stream], stream, name)
                with named_statistics(key):
                    seen = adapter.normalization
                if seen is not None and (seen.digest, seen.to_dict()) != (known.digest, known.to_dict()):
                    problems.append(
                        f"{key}.statistics: {path} (digest {seen.digest}) is not the file that the run was trained "
                        f"with (digest {known.digest}), or is read in another way, which would change what its actions "
                        "mean"
                    )
    if problems:
        raise ConfigError(problems)


def published(config: Config, adapters: Adapters) -> set[str]:
    """Modalities whose statistics come with an autoencoder's weights that training reads."""
    return {
        adapter.modality
        for stream, parts in adapters.items()
        for adapter in parts.values()
        if adapter.has_weights and not config.streams[stream].data.holds_latents and adapter.normalization is not None
    }
