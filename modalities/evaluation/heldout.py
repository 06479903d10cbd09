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
        labels: (B,) place of each record's class among the reader's, -1 where it has none of these.
        conditions: class name or caption of each, as a prompt.
        keys: of the records.
    """

    media: Tensor
    labels: Tensor
    conditions: list[str]
    keys: tuple[str, ...]


class Reader:
    """The usable records of one source, in the keyed order of `seed`; the others are stepped over and counted.

    Args:
        model: whose adapter loads the media, and whose conditions the records must have.
        classes: names that labels are counted in. Held-out and training records share one list, since their sources
            need not have the same classes.

    Attributes:
        unusable: index in the source -> why, of the records met so far.
        used: most records that one pass has found.
    """

    def __init__(self, model: Generator, modality: str, source: Source, classes: list[str], seed: int):
        self.model, self.modality, self.source, self.classes, self.seed = model, modality, source, classes, seed
        self.unusable: dict[int, str] = {}
        self.used = 0
        self._place = {name: place for place, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.source)

    def records(self, count: int, batch: int) -> Iterator[Records]:
        """Up to `count` of them. Raises DataError when not one can be used."""
        held: list[tuple[Record, Tensor, str]] = []
        found = 0
        for index in self._order():
            if index in self.unusable:
                continue
            try:
                held.append(self._load(index))
            except DataError as error:
                self.unusable[index] = str(error)
                continue
            found += 1
            self.used = max(self.used, found)
            if len(held) == batch or found == count:
                yield self._join(held)
                held = []
            if found == count:
                return
        if held:
            yield self._join(held)
        if not found:
            first = next(iter(self.unusable.values()))
            raise DataError(
                f"{self.modality}: not one of {len(self)} records can be used for evaluation; the first: {first}"
            )

    def batches(self, count: int, batch: int) -> Iterator[TokenBatch]:
        """The same as `token_batch`es."""
        return (token_batch(self.model, self.modality, records) for records in self.records(count, batch))

    def origins(self, count: int) -> set[str]:
        """Which records the first `count` are, without decoding their media."""
        found = set()
        for _, index in zip(range(count), self._order(), strict=False):
            try:
                found.add(self.source.read(index).origin)
            except DataError:
                continue
        return found

    def _order(self) -> Iterator[int]:
        size = len(self.source)
        return (record_at(position, size, self.seed, self.modality)[1] for position in range(size))

    def _load(self, index: int) -> tuple[Record, Tensor, str]:
        record = self.source.read(index)
        condition = condition_of(record, self.model)
        draw = generator(self.seed, self.modality, record.key, "evaluation")
        media = self.model.adapters[self.modality].load(record, draw)
        if not torch.isfinite(media).all():
            raise DataError(f"{record.origin}: the decoded media holds NaN or infinite values")
        return record, media, condition

    def _join(self, held: list[tuple[Record, Tensor, str]]) -> Records:
        records, media, conditions = zip(*held, strict=True)
        labels = torch.tensor([self._place.get(record.label, -1) for record in records])
        return Records(torch.stack(media), labels, list(conditions), tuple(record.key for record in records))


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


def shared_records(heldout: Reader, training: Reader, tested: int, trained: int) -> str:
    """How the two sources overlap, in words; "" where they do not.

    Equal sources are told by their fingerprints. Otherwise the first `tested` and `trained` records, in the order in
    which evaluation reads them, are compared by file (and row or member), without decoding them: this is complete for
    sources that are no larger than that.
    """
    if heldout.source.fingerprint() == training.source.fingerprint():
        return f"they are the same {len(heldout)} records"
    common = heldout.origins(tested) & training.origins(trained)
    return f"{len(common)} of the records that were looked at are in both, such as {min(common)}" if common else ""
