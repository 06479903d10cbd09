"""Captions are counted on a bounded number of records, the same every time, and without decoding media."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import DataError
from modalities.base import Record
from modalities.conditioning import TextConfig, token_limit, word_limit
from modalities.data import caption_lengths as module
from modalities.data.caption_lengths import caption_lengths

LIMIT = word_limit(TextConfig(max_words=6))


class Captions:
    """A source of captions; what is read is noted."""

    def __init__(self, captions: list[tuple[str, ...] | None], media: object = b"", text: tuple = ()):
        self.captions, self.media, self.text, self.seen = captions, media, text, []

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, index: int) -> Record:
        self.seen.append(index)
        if self.captions[index] is None:
            raise DataError("bad")
        return Record(str(index), str(index), self.media, captions=self.captions[index], text=self.text)


def words(count: int, last: str = "word") -> str:
    return " ".join(["word"] * (count - 1) + [last])


def test_shares_and_lengths_and_the_longest_one():
    source = Captions([(words(3),)] * 70 + [(words(20),)] * 27 + [(words(40, "end"), words(2))] * 2 + [None])
    found = caption_lengths(source, "image", 0, LIMIT)
    assert (found.records, found.looked, len(found.lengths), found.cut) == (100, 99, 101, 29)
    assert found.longest == words(40, "end")
    assert found.describe() == (
        "median 3 words, 95% at most 20, the longest 40 (of 99 of 100 records); 29% cut after 6 "
        "(condition.text.max_words)"
    )
    (line,) = found.warnings()
    assert line.startswith("29% of the captions have more than the 6 words of condition.text.max_words and lose their")
    assert "(99 of 100 records looked at); the longest has 40" in line
    assert line.endswith("condition.text.max_words=20 keeps 95%, 40 all")


def test_nothing_is_said_where_nothing_is_lost_or_there_is_no_caption():
    found = caption_lengths(Captions([(words(6),)] * 5), "image", 0, LIMIT)
    assert found.warnings() == []
    assert "(of all of 5 records); 0% cut after 6" in found.describe()
    assert caption_lengths(Captions([()] * 5), "image", 0, LIMIT) is None
    assert caption_lengths(Captions([None] * 5), "image", 0, LIMIT) is None


def test_a_bounded_number_spread_over_the_source_and_the_same_every_time():
    source = Captions([(words(3),)] * 20_000)
    found = caption_lengths(source, "image", 0, LIMIT)
    assert found.looked == len(source.seen) == len(set(source.seen)) == 512
    assert "(of 512 of 20,000 records)" in found.describe()
    assert np.histogram(source.seen, bins=4, range=(0, 20_000))[0].min() > 80
    again = Captions([(words(3),)] * 20_000)
    caption_lengths(again, "image", 0, LIMIT)
    assert again.seen == source.seen


def test_large_media_end_the_look(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    assert caption_lengths(Captions([(words(3),)] * 50, media=b"x" * 300), "image", 0, LIMIT).looked == 4
    assert (
        caption_lengths(Captions([(words(3),)] * 50, media=np.zeros((300,), np.uint8)), "image", 0, LIMIT).looked == 4
    )
    assert caption_lengths(Captions([(words(3),)] * 50, media=Path("x" * 300)), "image", 0, LIMIT).looked == 50


def test_long_words_are_counted_and_warned_of_where_most_of_them_is_lost():
    found = caption_lengths(Captions([("a butterfly",), ("a bee",)]), "image", 0, LIMIT)
    assert (found.shortened, found.misread, found.warnings()) == (1, 0, [])
    assert "50% with a word beyond 16 rows (condition.text.rows_per_word), the longest 'butterfly'" in found.describe()
    found = caption_lengths(Captions([("สวัสดีครับผมชื่อสมชาย",), ("a bee",)]), "image", 0, LIMIT)
    (line,) = found.warnings()
    assert line.startswith("50% of the captions have a word of which less than 50% of the spelling is read, such as 'ส")
    assert line.endswith("condition.text.rows_per_word=32 reads more")


def test_stored_features_that_fill_the_limit_were_cut():
    def refuse(texts):
        raise AssertionError("there is no tokenizer here")

    full = Captions([("a long caption",)] * 3, text=(torch.zeros(8, 2),))
    found = caption_lengths(full, "image", 0, token_limit(8, refuse))
    assert found.cut == 3
    (line,) = found.warnings()
    assert line.startswith("100% of the captions fill the 8 tokens of condition.encoder.max_tokens and lose their end")
    assert "encode again" in line
    short = Captions([("a long caption",)] * 3, text=(torch.zeros(7, 2),))
    assert caption_lengths(short, "image", 0, token_limit(8, refuse)).warnings() == []


@pytest.mark.parametrize("count", [1, 3, 7])
def test_fewer_records_than_are_asked_for(count):
    assert caption_lengths(Captions([(words(3),)] * count), "image", 0, LIMIT).looked == count
