"""Open the data of a run; all streams whose data are missing or unfit are named at once, with what is needed."""

from __future__ import annotations

from pathlib import Path

from configs.schema import Config, StreamConfig
from core.errors import ConfigError
from modalities.base import Source
from modalities.data.sources.build import SourceConfig, build_source
from modalities.data.sources.selection import SUFFIXES


def open_sources(config: Config, root: Path) -> dict[str, Source]:
    """stream -> its training records.

    Args:
        root: what relative paths start from.

    Raises ConfigError with lines for every stream that cannot be opened, DataError for damaged files.
    """
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for name, stream in config.streams.items():
        try:
            sources[name] = build_source(stream.data, stream_modalities(name, stream), root)
        except ConfigError as error:
            key = f"streams.{name}.data"
            hint = needed(stream.data, stream_modalities(name, stream)[0], key)
            problems += [f"{key}: {line}" for line in (*error.problems, hint) if line]
    if problems:
        raise ConfigError(problems)
    return sources


def stream_modalities(name: str, stream: StreamConfig) -> tuple[str, ...]:
    """Of its parts; a source looks for the files of the first."""
    return tuple(part.modality for part in stream.named_parts(name).values())


def needed(config: SourceConfig, modality: str, key: str) -> str:
    """What a source of files reads, in words; "" for the kinds that read none themselves."""
    media = " ".join(SUFFIXES.get(modality, ()))
    column = f"the encoded media in the column {config.media_field or modality!r}"
    layouts = {
        "folder": f"files ({media}) at any depth, whose classes are the names of their folders",
        "parquet": f"Parquet files with {column}",
        "mds": f"MDS shards and their index.json, with {column}",
        "webdataset": f"uncompressed .tar files in which each record is NAME ({media}) and NAME.json",
    }
    if config.kind not in layouts:
        return ""
    texts = ""
    if config.captions == "given" and not config.caption:
        texts = f", with captions in {' or '.join(config.caption_fields)}"
    return f"{config.kind} reads {layouts[config.kind]}{texts}. To use another place, set {key}.path=PATH"
