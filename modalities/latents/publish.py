"""From finished chunks to one data set: the index of all shards, the list of bad records, and the manifest."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from autoencoders.base import LatentNormalization, Moments
from core.errors import DataError
from core.training.records import commit
from modalities.latents.chunks import QUARANTINE, Chunk, ChunkFolder
from modalities.latents.encode import Job
from modalities.latents.format import MANIFEST, Manifest, StoredPart
from modalities.streams import Part

# Stored statistics are hardly floored: readers apply the `std_floor` of their configuration.
STORED_FLOOR = 1e-6


def publish(job: Job, folder: ChunkFolder, about: dict[str, Any]) -> Manifest:
    """Write index.json, quarantine.jsonl and manifest.json of a folder in which every chunk is there.

    Args:
        about: what only the configuration knows: the manifest's `source`, and under `parts` the fields autoencoder and
            media of every part.

    Raises DataError when not one record could be used.
    """
    chunks = [folder.read(number) for number in range(folder.count)]
    bad = [entry for chunk in chunks for entry in chunk.bad]
    samples = sum(chunk.samples for chunk in chunks)
    if samples == 0:
        raise DataError(
            f"{job.stream}: not one of {len(job.source)} records can be used; the first: {bad[0]['reason']}"
        )
    shards = [entry for chunk in chunks for entry in moved(chunk, folder.name(chunk.number))]
    found = Manifest(
        stream=job.stream,
        parts={name: stored_part(part, name, chunks, about["parts"][name]) for name, part in job.parts.items()},
        records=len(job.source),
        samples=samples,
        bad=len({entry["index"] for entry in bad}),
        views=job.views,
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        dtype=job.dtype,
        text=None if job.text is None else job.text.features,
        labels=sorted({label for chunk in chunks for label in chunk.labels}),
        seed=job.seed,
        code=code(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        shards=[
            {
                "name": shard["raw_data"]["basename"],
                "samples": shard["samples"],
                "bytes": shard["raw_data"]["bytes"],
                "sha256": shard["raw_data"]["hashes"]["sha256"],
            }
            for shard in shards
        ],
        source=about["source"],
    )
    folder.publish("index.json", json.dumps({"version": 2, "shards": shards}, sort_keys=True))
    folder.publish(QUARANTINE, "".join(json.dumps(entry) + "\n" for entry in bad))
    folder.publish(MANIFEST, found.to_json())  # last: it says that everything else is there
    folder.remove_all_left_overs()
    return found


def code() -> dict[str, Any]:
    """Version of this program where it is installed, commit where it is a checkout."""
    try:
        return {"version": metadata.version("selfflow"), **commit()}
    except metadata.PackageNotFoundError:
        return commit()


def moved(chunk: Chunk, folder: str) -> list[dict[str, Any]]:
    """The chunk's entries of the index, as seen from the folder above it."""
    return [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"{folder}/{shard['raw_data']['basename']}"}}
        for shard in chunk.shards
    ]


def stored_part(part: Part, name: str, chunks: list[Chunk], about: dict[str, Any]) -> StoredPart:
    adapter = part.adapter
    return StoredPart(
        modality=adapter.modality,
        grid=adapter.grid(),
        channels=adapter.channels,
        deviation=adapter.posterior_noise,
        normalization=statistics(
            adapter.normalization, [chunk.moments[name] for chunk in chunks if name in chunk.moments]
        ),
        valid=part.pads,
        **about,
    )


def statistics(published: LatentNormalization | None, moments: list[dict[str, Any]]) -> dict[str, Any]:
    """LatentNormalization published with the autoencoder's weights, else measured over everything that was encoded."""
    if published is not None:
        return {**published.to_dict(), "measured": False}
    total = Moments()
    for found in moments:
        values = (torch.tensor(found[name], dtype=torch.float64) for name in ("mean", "squares"))
        total.merge(Moments(found["count"], *values))
    return {**LatentNormalization.from_moments(total, STORED_FLOOR).to_dict(), "measured": True}
