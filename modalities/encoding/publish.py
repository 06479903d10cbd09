"""From finished parts to one data set: the index of all shards, the list of bad records, and the manifest."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from autoencoders.base import Moments, Whitening
from core.errors import DataError
from core.training.records import commit
from modalities.data.stored import MANIFEST, Manifest
from modalities.encoding.encode import Job
from modalities.encoding.parts import QUARANTINE, Part, PartFolder


def publish(job: Job, folder: PartFolder, about: dict[str, Any]) -> Manifest:
    """Write index.json, quarantine.jsonl and manifest.json of a folder in which every part is there.

    Args:
        about: what only the configuration knows: the fields autoencoder, media and source of the manifest.

    Raises DataError when not one record could be used.
    """
    parts = [folder.read(number) for number in range(folder.count)]
    bad = [entry for part in parts for entry in part.bad]
    samples = sum(part.samples for part in parts)
    if samples == 0:
        raise DataError(
            f"{job.modality}: not one of {len(job.source)} records can be used; the first: {bad[0]['reason']}"
        )
    shards = [entry for part in parts for entry in moved(part, folder.name(part.number))]
    found = Manifest(
        modality=job.modality,
        records=len(job.source),
        samples=samples,
        bad=len({entry["index"] for entry in bad}),
        views=job.views,
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        grid=job.adapter.grid(),
        channels=job.adapter.channels,
        dtype=job.dtype,
        deviation=job.adapter.posterior_noise,
        text=None if job.text is None else job.text.features,
        whitening=statistics(job, parts),
        labels=sorted({label for part in parts for label in part.labels}),
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
        **about,
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


def moved(part: Part, folder: str) -> list[dict[str, Any]]:
    """The part's entries of the index, as seen from the folder above it."""
    return [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"{folder}/{shard['raw_data']['basename']}"}}
        for shard in part.shards
    ]


def statistics(job: Job, parts: list[Part]) -> dict[str, Any]:
    """Whitening published with the autoencoder's weights, else measured over everything that was encoded."""
    published = job.adapter.whitening
    if published is not None:
        return {**published.to_dict(), "measured": False}
    moments = Moments()
    for part in parts:
        if part.moments is not None:
            values = (torch.tensor(part.moments[name], dtype=torch.float64) for name in ("mean", "squares"))
            moments.merge(Moments(part.moments["count"], *values))
    return {**Whitening.from_moments(moments).to_dict(), "measured": True}
