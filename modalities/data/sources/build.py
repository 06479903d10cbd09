"""The kinds of data sources, and the source that a configuration builds.

A new kind is a file with its source and a dataclass derived from `SourceConfig`, and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from core.errors import ConfigError
from core.kinds import kinds
from modalities.base import Source
from modalities.data.sources.concat import ConcatSource
from modalities.data.sources.config import MediaConfig, SourceConfig
from modalities.data.sources.folder import FolderConfig
from modalities.data.sources.mds_source import MdsConfig
from modalities.data.sources.parquet import ParquetConfig
from modalities.data.sources.webdataset import WebdatasetConfig
from modalities.episodes.config import LeRobotConfig, RldsConfig
from modalities.latents.source import LatentsConfig
from modalities.synthetic.config import SyntheticConfig


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(SourceConfig):
    """Several sources one after another.

    Attributes:
        parts: name -> source; the name is put before the keys.
    """

    kind: str = "concat"
    parts: dict[str, SourceConfig] = field(default_factory=dict, metadata=kinds(lambda: SOURCES))

    def problems(self) -> list[str]:
        found = super().problems()
        found += [
            f"parts.{name}.caption_choice: is not read there; set the one of the concat"
            for name, part in self.parts.items()
            if part.caption_choice is not None
        ]
        if not self.parts:
            found.append("parts: empty, kind 'concat' needs at least one")
        if len({part.holds_latents for part in self.parts.values()}) > 1:
            stored = ", ".join(name for name, part in self.parts.items() if part.holds_latents)
            found.append(f"parts: {stored} hold latents and the others media; one source has one of the two")
        return found + [f"parts.{name}.{line}" for name, part in self.parts.items() for line in part.problems()]

    def build(self, modalities: tuple[str, ...], root: Path) -> Source:
        # Repetition is left to this concat, so that keys get one suffix and not a nested source for each part.
        parts = {name: build_source(replace(part, repeat=1), modalities, root) for name, part in self.parts.items()}
        return ConcatSource(parts, {name: part.repeat for name, part in self.parts.items()})

    def paths(self) -> tuple[str, ...]:
        return tuple(path for part in self.parts.values() for path in part.paths())

    @property
    def holds_latents(self) -> bool:
        return any(part.holds_latents for part in self.parts.values())

    @property
    def holds_episodes(self) -> bool:
        return any(part.holds_episodes for part in self.parts.values())


MEDIA_SOURCES: dict[str, type[MediaConfig]] = {
    "folder": FolderConfig,
    "parquet": ParquetConfig,
    "webdataset": WebdatasetConfig,
    "mds": MdsConfig,
}
SOURCES: dict[str, type[SourceConfig]] = {
    "synthetic": SyntheticConfig,
    **MEDIA_SOURCES,
    "rlds": RldsConfig,
    "lerobot": LeRobotConfig,
    "latents": LatentsConfig,
    "concat": ConcatConfig,
}


def build_source(config: SourceConfig, modalities: str | tuple[str, ...], root: Path) -> Source:
    """The source of a configuration.

    Args:
        modalities: of the parts of a record, or that of its only part. Files, columns and members are those of the
            first; the other parts are read from the same media, such as the audio of a video.
        root: the folder that relative paths start from.

    Raises ConfigError for wrong settings, missing paths, columns, members or captions, and DataError for damaged
    files, before any record is trained on.
    """
    problems = config.problems()
    if problems:
        raise ConfigError(problems)
    source = config.build((modalities,) if isinstance(modalities, str) else modalities, root)
    return source if config.repeat == 1 else ConcatSource({"": source}, {"": config.repeat})
