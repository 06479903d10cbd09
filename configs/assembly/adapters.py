"""Adapters with their autoencoders, for every part of every stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autoencoders.patches import Patched
from autoencoders.pretrained import Pretrained, PretrainedConfig
from configs.buckets import family
from configs.schema import Config, StreamConfig
from core.errors import CheckpointError, ConfigError
from modalities.base import ModalityAdapter
from modalities.table import modality

Adapters = dict[str, dict[str, ModalityAdapter]]  # stream -> part -> adapter


def build_adapters(config: Config, root: Path) -> Adapters:
    """`root` is what relative paths of weights start from, where they exist there; else they are names on the hub.

    Raises ConfigError where parts of one modality, which share their layers, have tokens of other widths.
    """
    adapters: Adapters = {}
    widths: dict[str, tuple[int, str]] = {}
    networks: dict[tuple[str, str], ModalityAdapter] = {}  # of the sizes of a stream, which share one
    for stream, name, part in config.parts():
        media = part.media
        if isinstance(media.autoencoder, PretrainedConfig):
            path = located(media.autoencoder.path, root)
            media = replace(media, autoencoder=replace(media.autoencoder, path=path))
        if getattr(media, "statistics", ""):
            media = replace(media, statistics=located(media.statistics, root))
        adapter = modality(part.modality).adapter(media)
        place = family(stream, config.streams[stream]), name
        share_weights(adapter, networks.setdefault(place, adapter))
        adapters.setdefault(stream, {})[name] = adapter
        key = media_key(config.streams[stream], stream, name)
        channels, first = widths.setdefault(part.modality, (adapter.channels, key))
        if channels != adapter.channels:
            raise ConfigError(
                f"{key}: makes tokens of {adapter.channels} channels, and {first} tokens of {channels}; all parts of a "
                "modality share its input and output layers"
            )
    return adapters


def share_weights(adapter: ModalityAdapter, first: ModalityAdapter) -> None:
    """Let an adapter have the network of another one with the same autoencoder, for media of another size."""
    own, other = adapter.autoencoder, first.autoencoder
    if isinstance(own, Patched) and isinstance(other, Patched):
        own.inner = other.inner
    elif isinstance(own, Pretrained):
        adapter.autoencoder = other


def media_key(entry: StreamConfig, stream: str, part: str) -> str:
    """The dotted key of the media settings of a part."""
    stream = family(stream, entry)
    return f"streams.{stream}.parts.{part}.media" if entry.parts else f"streams.{stream}.media"


def located(path: str, root: Path) -> str:
    """A path of weights or statistics: below `root` where it exists there, else unchanged."""
    return str(root / path) if path and (root / path).exists() else path


def load_autoencoders(config: Config, adapters: Mapping[str, Mapping[str, ModalityAdapter]]) -> None:
    """Read the weights of all that have some. Raises ConfigError where they are missing or do not fit."""
    for stream, parts in adapters.items():
        for name, adapter in parts.items():
            with named("autoencoder", f"{media_key(config.streams[stream], stream, name)}.autoencoder"):
                adapter.load_weights()


@contextmanager
def named(part: str, key: str) -> Iterator[None]:
    """Errors about a network, which calls itself `part`, under the key of its section in the configuration."""
    try:
        yield
    except ConfigError as error:
        fields_of = rf"(?<![\w./]){part}\.(?=(kind|path|layer|resample|precision|posterior)\b)"
        raise ConfigError(re.sub(fields_of, f"{key}.", line) for line in error.problems) from error
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error
