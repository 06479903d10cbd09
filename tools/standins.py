"""Stand-ins for data that are not there: one record with the shapes of all of them, so that a plan can be made."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from configs.networks import CLASS_TRUNKS
from configs.schema import Config, StreamConfig
from configs.sources import needed, open_sources
from core.errors import ConfigError, DataError
from modalities.base import ModalityAdapter, Record, Source, StoredLatents
from modalities.conditions import ConditionConfig
from modalities.data.account import Account
from modalities.data.sources import SourceConfig, build_source


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


def open_data(
    config: Config, adapters: dict[str, ModalityAdapter], root: Path
) -> tuple[dict[str, Source], dict[str, list[str]]]:
    """(modality -> source, modality -> why its data cannot be opened, so that it has a stand-in).

    Raises ConfigError and DataError, as training does, for data that are there but cannot be used.
    """
    opened: dict[str, Source] = {}
    absent: dict[str, list[str]] = {}
    streams = config.modalities.streams()
    for name, stream in streams.items():
        try:
            opened[name] = build_source(stream.data, name, root)
        except (ConfigError, DataError) as error:
            if is_there(stream.data, root):
                open_sources(config, root)  # to raise it together with those of the other modalities
                raise
            lines = [*str(error).splitlines(), needed(stream.data, name, f"modalities.{name}.data")]
            absent[name] = [line for line in lines if line]
    labels = sorted({label for source in opened.values() for label in source.labels()})
    if absent and config.condition.kind == "label" and not labels:
        if config.trunk.kind not in CLASS_TRUNKS:
            open_sources(config, root)  # how many classes there are, only the data know
        labels = [f"class {number}" for number in range(getattr(config.trunk, config.trunk.kind).num_classes - 1)]
    for name in absent:
        opened[name] = StandIn(record(streams[name], adapters[name], config.condition, labels), labels)
    return {name: opened[name] for name in streams}, absent


def is_there(data: SourceConfig, root: Path) -> bool:
    """Whether the place of a source exists: then what is wrong with it is to be told, and not to be passed over."""
    if data.parts:
        return all(is_there(part, root) for part in data.parts.values())
    if "://" in data.path:
        return False
    fixed = [part for part in Path(data.path).expanduser().parts]
    wild = next((place for place, part in enumerate(fixed) if re.search(r"[*?\[]", part)), len(fixed))
    return root.joinpath(*fixed[:wild]).exists()


def record(stream: StreamConfig, adapter: ModalityAdapter, condition: ConditionConfig, labels: list[str]) -> Record:
    """One that `adapter` can load; stored latents come with stored text features."""
    media, rate, text = _media(stream, adapter), None, ()
    if stream.data.holds_latents:
        shape = (adapter.ids().shape[0], adapter.channels)
        media = StoredLatents(torch.zeros(shape), torch.ones(shape) if adapter.posterior_noise else None)
        if condition.encoder is not None:
            text = (torch.zeros(condition.encoder.length(), condition.encoder.channels()),)
    elif adapter.modality != "image":
        rate = stream.media.fps if adapter.modality == "video" else stream.media.sample_rate
    return Record("stand-in", "a stand-in", media, captions=("",), label=next(iter(labels), None), rate=rate, text=text)


def _media(stream: StreamConfig, adapter: ModalityAdapter) -> np.ndarray:
    """A grey ramp, or a slow one of sound, of the size that a sample has."""
    length, height, width = adapter.size
    if adapter.modality == "audio":
        ramp = np.linspace(-0.5, 0.5, length, dtype=np.float32)
        return np.repeat(ramp[:, None], stream.media.channels, axis=1)
    height, width = (max(side, stream.media.min_size) for side in (height, width))
    shape = (height, width, 3) if adapter.modality == "image" else (length, height, width, 3)
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[:, None], shape).copy()
