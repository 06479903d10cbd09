"""Every modality, one row each: its media settings, its adapter, its files and the paper's defaults of its streams.

A new modality is a file with an adapter (modalities/base.py says what one offers) and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError, choose
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import ModalityAdapter
from modalities.image import ImageAdapter, ImageConfig
from modalities.video import VideoAdapter, VideoConfig


@dataclass(frozen=True)
class Modality:
    """
    Attributes:
        settings: dataclass of the section `media`.
        adapter: makes the adapter from these settings.
        weight, batch, mask_ratio: defaults of a stream of this modality alone (paper App. D: 0.57 / 0.30 / 0.13,
            batches on one device 38 / 8 / 16, R_M 0.25 / 0.1 / 0.5).
    """

    settings: type
    adapter: Callable[[Any], ModalityAdapter]
    weight: float = 1.0
    batch: int = 1
    mask_ratio: float = 0.25


MODALITIES = {
    "image": Modality(ImageConfig, ImageAdapter, 0.57, 38, 0.25),
    "video": Modality(VideoConfig, VideoAdapter, 0.30, 8, 0.1),
    "audio": Modality(AudioConfig, AudioAdapter, 0.13, 16, 0.5),
}


def modality(name: str) -> Modality:
    """A row. Raises ConfigError for an unknown name."""
    return choose("modality", name, MODALITIES)


def media_settings(section: dict, name: str) -> type | None:
    """The dataclass of the section `media` beside which `modality` stands, or is named `name`; None for a stream that
    has `parts`. Raises ConfigError for an unknown modality."""
    if section.get("parts"):
        if section.get("media") is not None:
            raise ConfigError("media: belongs to each of the parts, parts.NAME.media")
        return None
    wanted = section.get("modality") or name
    try:
        return modality(wanted).settings
    except ConfigError as error:
        (line,) = error.problems
        hint = "" if section.get("modality") else " A stream or part of another name says which modality it has"
        raise ConfigError(f"{line}{hint}") from error


def stream_defaults(user: dict) -> dict:
    """Settings under the user's own ones: what is usual for the modality of each stream of one part."""
    found: dict[str, dict] = {}
    streams = user.get("streams")
    for name, section in streams.items() if isinstance(streams, dict) else ():
        if isinstance(section, dict):
            row = None if section.get("parts") else MODALITIES.get(section.get("modality") or name)
            usual = {} if row is None else {"weight": row.weight, "batch": row.batch, "mask_ratio": row.mask_ratio}
            found[name] = usual  # also where there is nothing usual: the order of the streams is the user's
    return {"streams": found} if found else {}
