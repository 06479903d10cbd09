"""The configuration of records that are drawn in code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from modalities.base import Source
from modalities.data.sources.config import SourceConfig
from modalities.data.sources.selection import SUFFIXES
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.synthetic.draw import SyntheticSource


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(SourceConfig):
    """Records drawn in code, of one modality, or videos with their audio.

    Attributes:
        size, count, seed, frames, rate, seconds, octave: see SyntheticSource.
    """

    kind: str = "synthetic"
    size: int = 16
    count: int = 100_000
    seed: int = 0
    frames: int = 9
    rate: float | None = None
    seconds: float = 1.0
    octave: int = 5

    def build(self, modalities: tuple[str, ...], root: Path) -> Source:
        if set(modalities) == {"video", "audio"}:
            rate = {} if self.rate is None else {"fps": self.rate}
            return AudiovisualSource(self.size, self.seed, self.count, self.frames, **rate)
        if len(modalities) != 1:
            raise ConfigError(
                f"kind: 'synthetic' draws one of {', '.join(SUFFIXES)}, or a video with its audio; "
                f"not {' with '.join(modalities)}"
            )
        return SyntheticSource(
            modalities[0], self.size, self.seed, self.count, self.frames, self.rate, self.seconds, self.octave
        )
