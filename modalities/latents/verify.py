"""Is an encoded folder what its manifest says: every shard by its checksum, every sample by its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.latents.chunks import SETTINGS, Chunk, ChunkFolder, file_digest, mds_writer
from modalities.latents.format import FORMAT, Manifest, read_manifest
from modalities.latents.source import LatentsSource


def verify(folder: Path, progress: Callable[[int], object] = lambda samples: None) -> list[str]:
    """What is wrong, one line each; empty where all is well. Reads everything once.

    Args:
        progress: called with the number of samples that were looked at.

    Raises ConfigError for a folder without a manifest, and where mosaicml-streaming is missing.
    """
    mds_writer()
    manifest = read_manifest(folder)
    problems = list(shard_problems(folder, manifest))
    try:
        source = LatentsSource(folder)
    except (ConfigError, DataError) as error:
        return [*problems, str(error)]
    for index in range(len(source)):
        try:
            source.read(index)
        except DataError as error:
            problems.append(str(error))
        progress(1)
    return list(dict.fromkeys(problems))


def shard_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Shards that are missing or have another size or checksum than the manifest says."""
    for shard in manifest.shards:
        path = folder / shard["name"]
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path}: {path.stat().st_size:,} bytes, the manifest says {shard['bytes']:,}"
        elif file_digest(path) != shard["sha256"]:
            yield f"{path}: damaged: its sha256 is not that of the manifest"


def unfinished(folder: Path) -> tuple[dict, list[Chunk], int] | None:
    """(settings, the chunks that are there, chunks in all) of a folder that was begun; None for any other.

    Raises ConfigError for a folder of another format, DataError for a damaged one.
    """
    if not (folder / SETTINGS).is_file():
        return None
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise ConfigError(
                f"{folder}: was begun in format {settings['format']}, not {FORMAT}; encode the data again"
            )
        count = -(-settings["records"] // settings["chunk"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SETTINGS}: damaged: {error}") from error
    chunks = ChunkFolder(folder, settings, count)
    missing = set(chunks.missing())
    return settings, [chunks.read(number) for number in range(count) if number not in missing], count
