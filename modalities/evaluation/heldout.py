"""Batches for evaluation: the same records in the same order for every model of the same data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import DataError
from core.keys import generator
from core.types import TokenBatch
from modalities.base import Record, Source, StoredLatents, make_segment
from modalities.conditions import Prompt
from modalities.data.decoding import decoded
from modalities.data.order import Order
from modalities.generation import Generator


@dataclass(frozen=True)
class Records:
    """Loaded records of one batch.

    Attributes:
        media: (B, *media), or the means (B, N, C) of a source of latents.
        labels: (B,) place of each record's class among the reader's, -1 where it has none of these.
        conditions: class name, or the most detailed caption, of each.
        keys: of the records.
    """

    media: Tensor | StoredLatents
    labels: Tensor
    conditions: list[Prompt]
    keys: tuple[str, ...]


class Reader:
    """The usable records of one source, in the keyed order of `seed`; the others are stepped over and counted.

    Args:
        model: whose adapter loads the media, and whose conditions the records must have.
        classes: names that labels are counted in. Held-out and training records share one list, since their sources
            need not have the same classes.
        choice: which of several captions, a name of `CAPTION_CHOICES`; None is the longest.

    Attributes:
        unusable: index in the source -> why, of the records met so far.
        used: most records that one pass has found.
    """

    def __init__(
        self,
        model: Generator,
        modality: str,
        source: Source,
        classes: list[str],
        seed: int,
        choice: str | None = None,
    ):
        self.model, self.modality, self.source, self.classes, self.seed = model, modality, source, classes, seed
        self.choice = choice
        self.unusable: dict[int, str] = {}
        self.used = 0
        self._place = {name: place for place, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.source)

    def records(self, count: int, batch: int) -> Iterator[Records]:
        """Up to `count` of them. Raises DataError when not one can be used."""
        held: list[tuple[Record, Tensor, Prompt]] = []
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
        order = Order(self.source, self.seed, self.modality)
        return (order.at(position)[1] for position in range(len(self.source)))

    def _load(self, index: int) -> tuple[Record, Tensor, Prompt]:
        record = self.source.read(index)
        condition = self.model.conditions.chosen(record, self.choice)
        if isinstance(record.media, StoredLatents):
            return record, record.media.mean, condition
        draw = generator(self.seed, self.modality, record.key, "evaluation")
        return record, decoded(self.model.adapters[self.modality], record, draw), condition

    def _join(self, held: list[tuple[Record, Tensor, Prompt]]) -> Records:
        records, loaded, conditions = zip(*held, strict=True)
        labels = torch.tensor([self._place.get(record.label, -1) for record in records])
        media = torch.stack(loaded)
        if isinstance(records[0].media, StoredLatents):
            media = StoredLatents(media)
        return Records(media, labels, list(conditions), tuple(record.key for record in records))


def token_batch(model: Generator, modality: str, records: Records) -> TokenBatch:
    """Whitened tokens under the records' own conditions, on the model's device."""
    adapter = model.adapters[modality]
    if isinstance(records.media, StoredLatents):
        raw = records.media.mean
    else:
        raw = adapter.encode(records.media.to(model.device if adapter.has_weights else "cpu"))
    tokens = model.whitening[modality].whiten(raw).cpu()
    context = model.context(records.conditions)
    return TokenBatch((make_segment(adapter, tokens),), context, records.keys).to(model.device)


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
