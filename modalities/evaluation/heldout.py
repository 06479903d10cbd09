"""Batches for evaluation: the same records in the same order for every model of the same data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import DataError
from core.keys import generator
from core.types import TokenBatch
from modalities.base import Record, Source, make_segment
from modalities.data.order import record_at
from modalities.generation import Generator


@dataclass(frozen=True)
class Records:
    """Loaded records of one batch.

    Attributes:
        media: (B, *media).
        labels: (B,) class of each record in the source's own list, or None without classes.
        conditions: text or class name of each, as a prompt; "" where a record has none.
        keys: of the records.
    """

    media: Tensor
    labels: Tensor | None
    conditions: list[str]
    keys: tuple[str, ...]


def read_records(
    model: Generator, modality: str, source: Source, count: int, batch: int, seed: int
) -> Iterator[Records]:
    """Up to `count` usable records in the keyed order of `seed`; those that cannot be used are stepped over."""
    adapter, classes = model.adapters[modality], {name: place for place, name in enumerate(source.labels())}
    held: list[tuple[Tensor, Record]] = []
    found = 0
    for position in range(len(source)):
        _, index = record_at(position, len(source), seed, modality)
        try:
            record = source.read(index)
            condition_of(record, model)
            media = adapter.load(record, generator(seed, modality, record.key, "evaluation"))
        except DataError:
            continue
        if not torch.isfinite(media).all():
            continue
        held.append((media, record))
        found += 1
        if len(held) == batch or found == count:
            yield _join(held, classes, model)
            held = []
        if found == count:
            return
    if held:
        yield _join(held, classes, model)
    if not found:
        raise DataError(f"{modality}: not one of {len(source)} records can be used for evaluation")


def token_batch(model: Generator, modality: str, records: Records) -> TokenBatch:
    """Whitened tokens under the records' own conditions, on the model's device."""
    adapter = model.adapters[modality]
    device = model.device if adapter.has_weights else torch.device("cpu")
    tokens = model.whitening[modality].whiten(adapter.encode(records.media.to(device))).cpu()
    context = model.conditions.context(records.conditions, torch.zeros(len(records.keys), dtype=torch.bool))
    return TokenBatch((make_segment(adapter, tokens),), context, records.keys).to(model.device)


def condition_of(record: Record, model: Generator) -> str:
    """The record's class name, or the longest of its captions: the most detailed one (paper 4)."""
    if model.conditions.config.kind == "label":
        if record.label not in model.conditions.labels:
            raise DataError(f"{record.origin}: label {record.label!r} is not one of the run's")
        return record.label
    if not record.captions:
        raise DataError(f"{record.origin}: has no caption")
    return max(record.captions, key=len)


def _join(held: list[tuple[Tensor, Record]], classes: dict[str, int], model: Generator) -> Records:
    labels = None
    if classes and all(record.label in classes for _, record in held):
        labels = torch.tensor([classes[record.label] for _, record in held])
    conditions = [condition_of(record, model) for _, record in held]
    return Records(torch.stack([media for media, _ in held]), labels, conditions, tuple(r.key for _, r in held))
