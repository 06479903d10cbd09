"""Frozen encoders of the clean media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from configs.assembly.adapters import Adapters, located, named
from configs.schema import Config
from modalities.targets import Encoder, build_encoder

Encoders = dict[str, dict[str, Encoder]]  # stream -> name of the target -> encoder


def build_encoders(config: Config, adapters: Adapters, root: Path) -> Encoders:
    """Raises ConfigError where weights are missing or do not fit."""
    encoders: Encoders = {}
    for stream, entry in config.streams.items():
        for name, wanted in entry.encoders.items():
            (adapter,) = adapters[stream].values()  # the schema refuses encoders for several parts
            located_entry = replace(wanted, path=located(wanted.path, root))
            rate = getattr(adapter.config, "sample_rate", None)
            size = {"image": adapter.size[1:], "audio": adapter.size[:1]}.get(adapter.modality, adapter.size)
            stride = adapter.autoencoder.spec.stride[0]
            with named("encoder", f"streams.{stream}.encoders.{name}"):
                encoder = build_encoder(located_entry, adapter.modality, size, adapter.grid(), stride, rate)
            encoders.setdefault(stream, {})[f"{stream}_{name}"] = encoder
    return encoders


def target_channels(encoders: Mapping[str, Mapping[str, Encoder]]) -> dict[str, int]:
    """Name of the target -> channels of its features."""
    return {name: encoder.channels for targets in encoders.values() for name, encoder in targets.items()}
