"""Open the data of a run; all streams whose data are missing or unfit are named at once, with what is needed."""

from __future__ import annotations

from pathlib import Path

from configs.buckets import Sources, family
from configs.schema import Config, StreamConfig
from core.errors import ConfigError
from modalities.base import Source
from modalities.data.sources.config import MediaConfig, SourceConfig


def open_sources(config: Config, root: Path) -> dict[str, Source]:
    """stream -> its training records.

    Args:
        root: what relative paths start from.

    Raises ConfigError with lines for every stream that cannot be opened, DataError for damaged files.
    """
    sources: dict[str, Source] = {}
    problems: list[str] = []
    opening = Sources(root)
    for name, stream in config.streams.items():
        try:
            sources[name] = opening.open(name, stream)
        except ConfigError as error:
            key = f"streams.{family(name, stream)}.data"
            hint = needed(stream.data, stream_modalities(name, stream)[0], key)
            problems += [f"{key}: {line}" for line in (*error.problems, hint) if line]
    if problems:
        raise ConfigError(dict.fromkeys(problems))  # the sizes of a stream share their data
    return sources


def stream_modalities(name: str, stream: StreamConfig) -> tuple[str, ...]:
    """The modalities of its parts; a source looks for the files of the first."""
    return tuple(part.modality for part in stream.named_parts(name).values())


def needed(config: SourceConfig, modality: str, key: str) -> str:
    """What a source of files reads, in words; "" for the kinds that read none themselves."""
    layout, texts = config.layout(modality), ""
    if not layout:
        return ""
    if isinstance(config, MediaConfig) and config.captions == "given" and not config.caption:
        texts = f", with captions in {' or '.join(config.caption_fields)}"
    return f"{config.kind} reads {layout}{texts}. To use another place, set {key}.path=PATH"
