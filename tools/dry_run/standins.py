"""Stand-ins for data that are not there: one record with the shapes of all of them, so that a plan can be made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.assembly import Assembly
from configs.assembly.conditions import class_names
from configs.assembly.episodes import check_windows
from configs.assembly.latents import check_latents
from configs.assembly.sources import needed, open_sources, stream_modalities
from configs.assembly.trunk import CLASS_TRUNKS
from configs.buckets import Sources, family
from configs.schema import Config
from core.errors import ConfigError, DataError
from modalities.base import Media, ModalityAdapter, Record, Source, StoredLatents
from modalities.data.sources.account import Account
from modalities.data.sources.config import SourceConfig


class StandIn:
    """A source of one record."""

    def __init__(self, record: Record, labels: list[str]):
        self.record, self.names = record, labels

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Record:
        return self.record

    def labels(self) -> list[str]:
        return self.names

    def account(self) -> Account:
        return Account()

    def fingerprint(self) -> str:
        return "stand-in"


def open_data(assembly: Assembly) -> dict[str, list[str]]:
    """Give an assembly its sources: those that can be opened, and stand-ins.

    Returns stream -> why its data cannot be opened, so that it has a stand-in. Raises ConfigError and DataError, as
    training does, for data that are there but cannot be used.
    """
    config, root = assembly.config, assembly.root
    opened: dict[str, Source] = {}
    absent: dict[str, list[str]] = {}
    opening = Sources(root)
    for name, stream in config.streams.items():
        modalities = stream_modalities(name, stream)
        try:
            opened[name] = opening.open(name, stream)
        except (ConfigError, DataError) as error:
            if is_there(stream.data, root):
                open_sources(config, root)  # to raise it together with those of the other streams
                raise
            lines = [
                *str(error).splitlines(),
                needed(stream.data, modalities[0], f"streams.{family(name, stream)}.data"),
            ]
            absent[name] = [line for line in lines if line]
    labels = class_names(opened.values())
    if absent and config.condition.kind == "label" and not labels:
        if config.trunk.kind not in CLASS_TRUNKS:
            open_sources(config, root)  # how many classes there are, only the data know
        labels = [f"class {number}" for number in range(getattr(config.trunk, config.trunk.kind).num_classes - 1)]
    for name in absent:
        opened[name] = StandIn(record(config, name, assembly.adapters[name], labels), labels)
    assembly.sources = {name: opened[name] for name in config.streams}
    check_latents(config, assembly.sources, assembly.adapters, root)
    check_windows(config, assembly.sources, assembly.adapters)
    return absent


def is_there(data: SourceConfig, root: Path) -> bool:
    """Whether the place of a source exists: then what is wrong with it is reported, not ignored."""
    return all(_is_there(path, root) for path in data.paths())


def _is_there(path: str, root: Path) -> bool:
    if "://" in path:
        return False
    fixed = Path(path).expanduser().parts
    wild = next((place for place, part in enumerate(fixed) if re.search(r"[*?\[]", part)), len(fixed))
    return root.joinpath(*fixed[:wild]).exists()


def record(config: Config, stream: str, adapters: Mapping[str, ModalityAdapter], labels: list[str]) -> Record:
    """One that the adapters of a stream's parts can load; stored latents come with stored text features."""
    entry, encoder, text = config.streams[stream], config.condition.text_encoder(), ()
    latents = entry.data.holds_latents
    if latents and encoder is not None:
        text = (torch.zeros(encoder.length(), encoder.channels()),)
    parts = {name: _latents(adapter) if latents else adapter.stand_in() for name, adapter in adapters.items()}
    if entry.data.holds_episodes:  # whose masks say that nothing of it is padding
        parts = {
            name: replace(media, valid=np.ones(adapters[name].size[0], dtype=bool)) for name, media in parts.items()
        }
    first, label = next(iter(parts.values())), next(iter(labels), None)
    return Record(
        "stand-in", "a stand-in", first.data, captions=("",), label=label, rate=first.rate, parts=parts, text=text
    )


def _latents(adapter: ModalityAdapter) -> Media:
    shape = (adapter.ids().shape[0], adapter.channels)
    deviation = torch.ones(shape) if adapter.posterior_noise else None
    valid = torch.ones(shape[0], dtype=torch.bool) if adapter.pads else None
    return Media(StoredLatents(torch.zeros(shape), deviation, valid))
