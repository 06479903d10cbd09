"""Length limits of texts are counted where they cut, with the same words that the encoders read."""

from __future__ import annotations

import pytest

from modalities.conditioning import TextConfig, collate_text, describe_cut, token_limit, word_limit
from modalities.conditioning.bytes import word_rows

CONFIG = TextConfig(max_words=6)


def cut(text: str, config: TextConfig = CONFIG) -> list[str]:
    limit = word_limit(config)
    return describe_cut(text, limit.measure([text])[0], limit)


def test_two_captions_that_differ_behind_the_limit_are_the_same_and_both_are_told():
    texts = ["a red circle over a blue square", "a red circle over a blue cross"]
    ids, _ = collate_text(texts, CONFIG)
    assert ids[0].equal(ids[1])  # this is what is lost
    for text in texts:
        (line,) = cut(text)
        assert line == f"'{text}' has 7 words, and the model reads 6 (condition.text.max_words): its end is cut off"
    assert cut("a red circle over a blue") == []
    assert cut("") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("one two three", 3), ("stop, now!", 4), ("", 1), ("  ", 1), ("日本語", 3), ("don't", 3), ("x " * 5000, 5000)],
)
def test_the_length_is_the_number_of_tokens_of_the_encoder(text, words):
    (found,) = word_limit(CONFIG).measure([text])
    assert found.length == words
    wide = TextConfig(max_words=words + 3)
    _, valid = collate_text([text], wide)
    assert valid.sum() == words


def test_words_that_lose_n_grams_are_counted_and_told_where_most_is_lost():
    (found,) = word_limit(CONFIG).measure(["short butterfly " + "x1y2z3w4v5u6" * 4])
    assert [word for word, _ in found.shortened] == ["butterfly", "x1y2z3w4v5u6" * 4]
    for word, share in found.shortened:
        everything = word_rows(word, TextConfig(rows_per_word=1000))
        assert share == CONFIG.rows_per_word / len(everything)
    assert cut("a butterfly") == []  # 16 of 18 rows, the whole word's among them
    assert cut("a butterfly", TextConfig(rows_per_word=2)) == []  # a word among many keeps a row of its own
    thai = "สวัสดีครับผมชื่อสมชาย"  # a sentence without spaces is one word
    (line,) = cut(thai)
    assert line.startswith("the word 'สวัสดี")
    assert line.endswith("% of its spelling is read (condition.text.rows_per_word 16)")
    assert cut(thai, TextConfig(rows_per_word=200)) == []


def test_words_behind_the_limit_are_not_told_twice():
    assert len(cut("a b c d e f " + "x1y2z3w4v5u6" * 4)) == 1


def test_tokens_are_those_of_the_tokenizer():
    limit = token_limit(4, lambda texts: [len(text) for text in texts])
    assert [limit.cut(found) for found in limit.measure(["abcd", "abcde"])] == [False, True]
    assert (
        "has 5 tokens, and the model reads 4 (condition.encoder.max_tokens)"
        in describe_cut("abcde", limit.measure(["abcde"])[0], limit)[0]
    )


def test_without_a_configuration_words_are_counted_and_nothing_is_cut():
    limit = word_limit(None)
    (found,) = limit.measure(["one " * 40])
    assert found.length == 40
    assert not limit.cut(found)
