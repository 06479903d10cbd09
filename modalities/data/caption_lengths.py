"""How long the captions of a source are, from a bounded number of its records, without decoding media."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import DataError
from modalities.base import Record, Source
from modalities.conditioning.limits import WORD_SHARE, TextLength, TextLimit, mostly_lost, shortened
from modalities.data.order import Order

LOOKED_AT = 512  # records
MOST_BYTES = 2**28  # of media that are read with them, as from tars


@dataclass(frozen=True)
class CaptionLengths:
    """
    Attributes:
        records, looked: of the source, and how many of them were looked at.
        lengths: (C,) of all captions of these, in the limit's unit.
        cut: captions that lose their end.
        shortened: captions with a word that loses n-grams; `misread` of them have one that loses most.
        longest, longest_word: the texts.
        stored: the lengths are those of stored features, which were cut when they were made.
    """

    limit: TextLimit
    records: int
    looked: int
    lengths: np.ndarray
    cut: int
    shortened: int
    misread: int
    longest: str
    longest_word: str
    stored: bool

    def fitting(self, share: float) -> int:
        """The length that a share of the captions do not exceed."""
        return int(np.quantile(self.lengths, share, method="higher"))

    def describe(self) -> str:
        """Lengths, and what the limit makes of them, in one line."""
        unit, limit = self.limit.unit, self.limit.limit
        looked = "all" if self.looked == self.records else f"{self.looked:,}"
        text = (
            f"median {self.fitting(0.5)} {unit}, 95% at most {self.fitting(0.95)}, the longest {self.lengths.max()} "
            f"(of {looked} of {self.records:,} records)"
        )
        if limit is None:
            return text
        text += f"; {self._share(self.cut)} cut after {limit} ({self.limit.setting})"
        if self.shortened:
            text += (
                f"; {self._share(self.shortened)} with a word beyond {self.limit.word_limit} rows "
                f"({self.limit.word_setting}), the longest {shortened(self.longest_word, 40)!r}"
            )
        return text

    def warnings(self) -> list[str]:
        """What captions lose, one line for each limit that they exceed."""
        found, limit = [], self.limit
        if self.cut:
            verb = "fill" if self.stored else "have more than"
            found.append(
                f"{self._share(self.cut)} of the captions {verb} the {limit.limit} {limit.unit} of {limit.setting} and "
                f"lose their end ({self.looked:,} of {self.records:,} records looked at)"
                + ("; encode again with more" if self.stored else f"; the longest has {self.lengths.max()}")
                + f": {shortened(self.longest)!r}."
                + ("" if self.stored else f" {limit.setting}={self._kept()}")
            )
        if self.misread and limit.word_limit is not None:
            found.append(
                f"{self._share(self.misread)} of the captions have a word of which less than {WORD_SHARE:.0%} of the "
                f"spelling is read, such as {shortened(self.longest_word, 40)!r}; {limit.word_setting}="
                f"{2 * limit.word_limit} reads more"
            )
        return found

    def _kept(self) -> str:
        most, all_of_them = self.fitting(0.95), int(self.lengths.max())
        assert self.limit.limit is not None  # something was cut
        if most in (all_of_them, self.limit.limit) or most < self.limit.limit:
            return f"{all_of_them} keeps all"
        return f"{most} keeps 95%, {all_of_them} all"

    def _share(self, count: int) -> str:
        share = count / len(self.lengths)
        return f"{share:.0%}" if count == 0 or share >= 0.01 else "under 1%"


def caption_lengths(
    source: Source,
    modality: str,
    seed: int,
    limit: TextLimit,
    count: int = LOOKED_AT,
    takes: Callable[[str], bool] = bool,
) -> CaptionLengths | None:
    """Caption lengths of the records that the first steps read: spread over the source, the same every time.

    Args:
        takes: which captions count.

    None where there are no captions. Records that cannot be read are skipped.
    """
    order, captions, stored = Order(source, seed, modality), [], []
    looked = weight = 0
    for position in range(min(count, len(source))):
        try:
            record = source.read(order.at(position)[1])
        except DataError:
            continue
        looked += 1
        if len(record.text) == len(record.captions):
            stored += [(text, TextLength(len(rows))) for text, rows in zip(record.captions, record.text, strict=True)]
        else:
            captions += [text for text in record.captions if takes(text)]
        weight += _weight(record)
        if weight > MOST_BYTES:
            break
    distinct = list(dict.fromkeys(captions))
    known = dict(zip(distinct, limit.measure(distinct), strict=True)) if distinct else {}
    found = [*stored, *((text, known[text]) for text in captions)]
    if not found:
        return None
    words = [word for _, length in found for word, _ in length.shortened]
    longest, _ = max(found, key=lambda entry: entry[1].length)
    # What was cut when it was stored has the length of the limit.
    cut = sum(limit.cut(length) for _, length in found) + sum(length.length == limit.limit for _, length in stored)
    return CaptionLengths(
        limit=limit,
        records=len(source),
        looked=looked,
        lengths=np.array([length.length for _, length in found]),
        cut=cut,
        shortened=sum(bool(length.shortened) for _, length in found),
        misread=sum(any(mostly_lost(*word) for word in length.shortened) for _, length in found),
        longest=longest,
        longest_word=max(words, key=len, default=""),
        stored=bool(stored),
    )


def _weight(record: Record) -> int:
    """Bytes of media that were read with a record."""
    media = record.media
    if isinstance(media, Path):
        return 0
    return media.nbytes if isinstance(media, np.ndarray) else len(media) if isinstance(media, bytes) else 0
