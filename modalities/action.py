"""Robots: a chunk of actions, a token each, and the state in which it begins, as one token.

Every embodiment has a modality of its own, `action_rt1` or `state_g1`, and with it its own input and output layers:
the numbers of two robots mean different things. Tokens are physical values; the statistics of the data set normalize
them where latents are normalized, and are stored with the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from autoencoders.base import LatentNormalization
from autoencoders.config import AutoencoderConfig
from autoencoders.kinds import KINDS, build, media_problems
from autoencoders.transforms import VectorsConfig
from core.errors import ConfigError, DataError, nearest
from core.kinds import kinds
from modalities.actions import rotations
from modalities.actions.normalization import MODES, vector_normalization
from modalities.actions.statistics import read_statistics
from modalities.base import AutoencoderAdapter, Known, Media, Record
from modalities.media.opening import with_suffix

# Rows and columns of the axes (h, w) that no image has: (0, 0) would be the place of its first patch.
ACTION_PLACE, STATE_PLACE = -1, -2
ROTATIONS = ("none", *rotations.KINDS)


@dataclass
class ActionConfig:
    """
    Attributes:
        width: numbers of an action.
        actions: of a sample; a token each.
        rate: actions a second.
        statistics: file of `selfflow stats`, or of others (modalities/actions/statistics.py); relative to the
            configuration. Read when training begins, and stored with the run.
        normalize: quantiles (q01 and q99 to -1 and 1, clipped), min_max or mean_std.
        keep: places of the numbers that are not normalized, such as a gripper's.
        rotation: how three of the numbers encode a rotation: rpy, axis_angle, or none (they are joints). Written beside
            generated actions, for whoever carries them out.
        autoencoder: vectors.
    """

    width: int = 7
    actions: int = 6
    rate: float = 3.0
    statistics: str = ""
    normalize: str = "quantiles"
    keep: list[int] = field(default_factory=list)
    rotation: str = "none"
    autoencoder: AutoencoderConfig = field(default_factory=VectorsConfig, metadata=kinds(KINDS["action"]))

    def problems(self) -> list[str]:
        found = vector_problems(self, "action")
        if self.actions < 1:
            found.append(f"actions: {self.actions} must be at least 1")
        if not self.rate > 0:
            found.append(f"rate: {self.rate} must be above 0 actions a second")
        if self.rotation not in ROTATIONS:
            hint = nearest(self.rotation, ROTATIONS)
            found.append(f"rotation: {self.rotation!r} is not one of {', '.join(ROTATIONS)}.{hint}")
        return found


@dataclass
class StateConfig:
    """
    Attributes:
        width: numbers of the state (proprioception).
        statistics, normalize, keep, autoencoder: as of ActionConfig.
    """

    width: int = 8
    statistics: str = ""
    normalize: str = "quantiles"
    keep: list[int] = field(default_factory=list)
    autoencoder: AutoencoderConfig = field(default_factory=VectorsConfig, metadata=kinds(KINDS["state"]))

    def problems(self) -> list[str]:
        return vector_problems(self, "state")


def vector_problems(config: ActionConfig | StateConfig, modality: str) -> list[str]:
    """Problems of the fields that both have."""
    found = media_problems(config, modality)
    if config.width < 1:
        found.append(f"width: {config.width} must be at least 1")
    if config.normalize not in MODES:
        hint = nearest(config.normalize, MODES)
        found.append(f"normalize: {config.normalize!r} is not one of {', '.join(MODES)}.{hint}")
    if wrong := [place for place in config.keep if not 0 <= place < config.width]:
        found.append(f"keep: {', '.join(map(str, wrong))}: places of {config.width} numbers count from 0")
    return found


class ActionAdapter(AutoencoderAdapter):
    """Actions (A, W) float32 in physical units. Raises ConfigError when the config has problems.

    Args:
        modality: name of its input and output layers, `action` or `action_ROBOT`.
    """

    family = "action"
    known_files = MappingProxyType({"actions": "a JSON file of actions that are given as a whole"})
    pads = True

    def __init__(self, config: ActionConfig | StateConfig, modality: str = "action"):
        if found := config.problems():
            raise ConfigError(found)
        self.config, self.modality = config, modality
        steps = config.actions if isinstance(config, ActionConfig) else 1
        size = steps, 1, 1
        super().__init__(build(config, size), size)
        self._normalization: LatentNormalization | None = None

    @property
    def normalization(self) -> LatentNormalization:
        """Raises ConfigError where the statistics are missing, or of another robot."""
        if self._normalization is None:
            self._normalization = self._read_normalization()
        return self._normalization

    def _read_normalization(self) -> LatentNormalization:
        config = self.config
        if not config.statistics:
            raise ConfigError(
                f"statistics: empty, and the {self.family}s are normalized by those of their data set: make the file "
                "with `selfflow stats` and name it here"
            )
        found = read_statistics(Path(config.statistics), self.family)
        if found.width != config.width:
            raise ConfigError(
                f"statistics: {config.statistics} is of {found.width} numbers, and media.width is {config.width}: "
                "those of another robot?"
            )
        return vector_normalization(found, config.normalize, config.keep, f"statistics: {config.statistics}")

    def ids(self) -> Tensor:
        ids = super().ids()
        ids[:, 1:] = ACTION_PLACE
        return ids

    def seconds(self) -> Tensor:
        """An action lies in the middle of the time in which it is carried out, which begins with the first frame."""
        assert isinstance(self.config, ActionConfig)
        return (torch.arange(self.config.actions, dtype=torch.float64) + 0.5) / self.config.rate

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        values = record.readable()
        if not isinstance(values, np.ndarray):
            values = _from_json(values, record.origin, self.family)
        steps, width = self.size[0], self.config.width
        if values.ndim != 2 or len(values) != steps:
            raise DataError(
                f"{record.origin}: {self.family}s of shape {tuple(values.shape)}, expected ({steps}, {width})"
            )
        if values.shape[1] != width:  # of all records alike
            raise ConfigError(
                f"media.width: {width}, and the {self.family} of {record.origin} has {values.shape[1]} numbers"
            )
        return torch.tensor(values, dtype=torch.float32)

    def stand_in(self) -> Media:
        steps = self.size[0]
        return Media(np.zeros((steps, self.config.width), np.float32), valid=np.ones(steps, dtype=bool))

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        (record,) = files.values()
        return Known.whole(self, self.load(record, draw()))

    def write(self, media: Tensor, path: Path) -> Path:
        """JSON with the physical values, and what they mean."""
        path, config = with_suffix(path, ".json"), self.config
        about = {"modality": self.modality}
        if isinstance(config, ActionConfig):
            about |= {"rate": config.rate, "rotation": config.rotation}
        path.write_text(json.dumps({**about, f"{self.family}s": media.tolist()}) + "\n", encoding="utf-8")
        return path


class StateAdapter(ActionAdapter):
    """The state (1, W) in which a sample begins, at time 0."""

    family = "state"
    known_files = MappingProxyType({"state": "a JSON file of the state in which the sample begins"})
    pads = False

    def __init__(self, config: StateConfig, modality: str = "state"):
        super().__init__(config, modality)

    def ids(self) -> Tensor:
        ids = super().ids()
        ids[:, 1:] = STATE_PLACE
        return ids

    def seconds(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)


def _from_json(media: bytes | Path, origin: str, family: str) -> np.ndarray:
    """A list of vectors, or an object that has one under `actions` or `states`."""
    try:
        content = json.loads(media.read_bytes() if isinstance(media, Path) else media)
        rows = content[f"{family}s"] if isinstance(content, dict) else content
        return np.array(rows, dtype=np.float32)
    except KeyError as error:
        raise DataError(f"{origin}: has no {family}s, but {', '.join(content)}") from error
    except OSError as error:
        raise DataError(f"{origin}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{origin}: no list of {family}s, vectors of one length: {error}") from error
