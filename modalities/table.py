"""Every modality, one row each: its media settings, its adapter, its files and the paper's defaults of its streams.

A new modality is a file with an adapter (modalities/base.py says what one offers) and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from core.errors import ConfigError, nearest
from modalities.action import ActionAdapter, ActionConfig, StateAdapter, StateConfig
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
        family: there may be several modalities of the kind, each with layers of its own: NAME_ROBOT beside NAME. The
            adapter then takes the name as `modality`.
    """

    settings: type
    adapter: Callable[..., ModalityAdapter]
    weight: float = 1.0
    batch: int = 1
    mask_ratio: float = 0.25
    family: bool = False


MODALITIES = {
    "image": Modality(ImageConfig, ImageAdapter, 0.57, 38, 0.25),
    "video": Modality(VideoConfig, VideoAdapter, 0.30, 8, 0.1),
    "audio": Modality(AudioConfig, AudioAdapter, 0.13, 16, 0.5),
    "action": Modality(ActionConfig, ActionAdapter, family=True),
    "state": Modality(StateConfig, StateAdapter, family=True),
}


def modality(name: str) -> Modality:
    """The row of a modality, or of one of a family. Raises ConfigError for an unknown name."""
    row = MODALITIES.get(name)
    if row is not None and not row.family:
        return row
    kind = family_of(name)
    if kind is None:
        allowed = ", ".join(f"{key} (or {key}_ROBOT)" if one.family else key for key, one in MODALITIES.items())
        raise ConfigError(f"modality: {name!r} is not one of {allowed}.{nearest(str(name), MODALITIES)}")
    row = MODALITIES[kind]
    return replace(row, adapter=partial(row.adapter, modality=name))


def family_of(name: str) -> str | None:
    """The row of the family that a modality belongs to, such as action for action_rt1; None where there is none."""
    kind = str(name).partition("_")[0]
    return kind if kind in MODALITIES and MODALITIES[kind].family and (name == kind or name[len(kind) + 1 :]) else None


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
            wanted = section.get("modality") or name
            row = None if section.get("parts") else MODALITIES.get(family_of(wanted) or wanted)
            usual = {} if row is None else {"weight": row.weight, "batch": row.batch, "mask_ratio": row.mask_ratio}
            found[name] = usual  # also where there is nothing usual: the order of the streams is the user's
    return {"streams": found} if found else {}
