"""Batches for evaluation: the same records in the same order for every model of the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import DataError
from core.keys import generator
from core.types import TokenBatch
from modalities.base import Record, Source, StoredLatents
from modalities.conditioning.conditions import Prompt
from modalities.data.loader import load_record
from modalities.data.order import Order
from modalities.generation import Generator
from modalities.streams import Part, given_tokens, make_segments, stack_masks, token_mask

# A record, the media of its parts, their masks, its condition
_Loaded = tuple[Record, dict[str, Tensor | StoredLatents], dict[str, Tensor | None], Prompt]


@dataclass(frozen=True)
class Records:
    """Loaded records of one batch.

    Attributes:
        media: name of the part -> (B, *media), or the means (B, N, C) of stored latents.
        labels: (B,) place of each record's class among the reader's, -1 where it has none of these.
        conditions: class name, or the most detailed caption, of each.
        keys: of the records.
        valid: name of the part -> (B, N) bool, tokens that are no padding; None where all are real.
    """

    media: dict[str, Tensor | StoredLatents]
    labels: Tensor
    conditions: list[Prompt]
    keys: tuple[str, ...]
    valid: Mapping[str, Tensor | None] = field(default_factory=dict)


class Reader:
    """The usable records of one source, in the keyed order of `seed`; the others are skipped and counted.

    Args:
        model: whose adapters load the media, and whose conditions the records must have.
        stream: whose parts are loaded.
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
        stream: str,
        source: Source,
        classes: list[str],
        seed: int,
        choice: str | None = None,
    ):
        self.model, self.stream, self.source, self.classes, self.seed = model, stream, source, classes, seed
        self.choice = choice
        self.unusable: dict[int, str] = {}
        self.used = 0
        self._place = {name: place for place, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.source)

    def records(self, count: int, batch: int) -> Iterator[Records]:
        """Up to `count` of them. Raises DataError when not one can be used."""
        held: list[_Loaded] = []
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
                f"{self.stream}: not one of {len(self)} records can be used for evaluation; the first: {first}"
            )

    def batches(self, count: int, batch: int) -> Iterator[TokenBatch]:
        """The same as `token_batch`es."""
        return (token_batch(self.model, self.stream, records) for records in self.records(count, batch))

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
        order = Order(self.source, self.seed, self.stream)
        return (order.at(position)[1] for position in range(len(self.source)))

    def _load(self, index: int) -> _Loaded:
        record = self.source.read(index)
        condition = self.model.conditions.chosen(record, self.choice)

        def draw(purpose: str) -> torch.Generator:
            purposes = ("evaluation",) if purpose == "media" else ("evaluation", purpose)
            return generator(self.seed, self.stream, record.key, *purposes)

        parts = self.model.parts[self.stream]
        masks = {name: token_mask(name, part, record) for name, part in parts.items()}
        return record, load_record(parts, record, draw, augment=False), masks, condition

    def _join(self, held: list[_Loaded]) -> Records:
        records, loaded, masks, conditions = zip(*held, strict=True)
        labels = torch.tensor([self._place.get(record.label, -1) for record in records])
        media = {name: _stacked([row[name] for row in loaded]) for name in loaded[0]}
        parts = self.model.parts[self.stream]
        valid = {name: stack_masks([row[name] for row in masks], len(part.ids)) for name, part in parts.items()}
        return Records(media, labels, list(conditions), tuple(record.key for record in records), valid)


def _stacked(rows: list[Tensor | StoredLatents]) -> Tensor | StoredLatents:
    """The means, of latents."""
    if isinstance(rows[0], StoredLatents):
        return StoredLatents(torch.stack([row.mean for row in rows if isinstance(row, StoredLatents)]))
    return torch.stack([row for row in rows if isinstance(row, Tensor)])


def token_batch(model: Generator, stream: str, records: Records) -> TokenBatch:
    """Normalized tokens of all parts under the records' own conditions, on the model's device. Parts that are given in
    every sample are given here, too."""
    parts = model.parts[stream]
    tokens = [_tokens(model, part, records.media[name]) for name, part in parts.items()]  # (B, N, C) each
    context, given = model.context(records.conditions), given_tokens(parts)
    rows = None if given is None else given.expand(len(records.keys), -1)
    return TokenBatch(make_segments(parts, tokens, rows, records.valid), context, records.keys).to(model.device)


def _tokens(model: Generator, part: Part, media: Tensor | StoredLatents) -> Tensor:
    if isinstance(media, StoredLatents):
        return model.normalization[part.adapter.modality].normalize(media.mean).cpu()
    return model.encode(part, media)


def shared_records(val: Reader, training: Reader, tested: int, trained: int) -> str:
    """How the two sources overlap, in words; "" where they do not.

    Equal sources have equal fingerprints. Otherwise the first `tested` and `trained` records, in the order in
    which evaluation reads them, are compared by file (and row or member), without decoding them: this is complete for
    sources that are no larger than that.
    """
    if val.source.fingerprint() == training.source.fingerprint():
        return f"they are the same {len(val)} records"
    common = val.origins(tested) & training.origins(trained)
    return f"{len(common)} of the records that were looked at are in both, such as {min(common)}" if common else ""
