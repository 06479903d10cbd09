import subprocess
import sys

import pytest
import torch

from modalities.conditioning.bytes import TextConfig, collate_text, encode_text, split_words, word_rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red  circle,\nleft.", ["a", "red", "circle", ",", "left", "."]),
        ("don't 3.5", ["don", "'", "t", "3", ".", "5"]),
        ("GRÜSSE Straße", ["grüsse", "straße"]),
        ("e\u0301te\u0301", ["été"]),  # combining marks are composed
        ("हिन्दी में", ["हिन्दी", "में"]),  # marks stay in their word
        ("红色的 圆", ["红", "色", "的", "圆"]),
        ("ok👍🏽!", ["ok", "👍", "🏽", "!"]),
        ("  ", []),
    ],
)
def test_words_of_any_language(text, words):
    assert split_words(text) == words


def test_one_token_a_word():
    config = TextConfig(max_words=6)
    ids, valid = encode_text("red circle, red", config)
    assert ids.shape == (6, 16)
    assert ids.dtype == torch.int64
    assert valid.tolist() == [True] * 4 + [False] * 2
    assert torch.equal(ids[0], ids[3])
    assert (ids[4:] == 0).all()
    assert (ids[:4, 0] > 0).all()
    assert ids.max() < config.vocabulary


def test_similar_words_share_rows_and_others_hardly():
    config = TextConfig(vocabulary=2**20, rows_per_word=64)
    circle, circles, square = (set(word_rows(word, config)) for word in ("circle", "circles", "square"))
    assert len(circle & circles) >= 7  # n-grams of the common beginning
    assert not circle & square


def test_a_row_is_distinct_and_long_words_are_cut():
    config = TextConfig(rows_per_word=8)
    rows = word_rows("aaaaaaaaaaaaaaaaaaaaaaaa", config)
    assert len(rows) == len(set(rows)) <= 8
    assert len(word_rows("pneumonoultramicroscopic", config)) == 8


def test_a_whole_word_is_not_an_ngram():
    config = TextConfig(vocabulary=2**20, ngrams=[3])
    assert word_rows("a", config)[0] != word_rows("a", config)[1]
    assert len(word_rows("a", config)) == 2  # the word, and its only 3-gram: start, a, end


def test_no_words_give_one_valid_token():
    for text in ("", " \n\t"):
        ids, valid = encode_text(text, TextConfig())
        assert valid.sum() == 1
        assert ids[0, 0] > 0
        assert (ids[1:] == 0).all()


def test_long_text_is_cut_and_shapes_are_static():
    config = TextConfig(max_words=3)
    tokens, valid = collate_text(["one two three four", "", "\ud800 lone surrogate"], config)
    assert tokens.shape == (3, 3, 16)
    assert valid.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert torch.equal(tokens[0], encode_text("one two three", config)[0])


def test_rows_are_the_same_in_every_process():
    code = "from modalities.conditioning import *; print(word_rows('größe', TextConfig()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(word_rows("größe", TextConfig()))


def test_small_tables_and_bad_settings():
    assert word_rows("word", TextConfig(vocabulary=2)) == [1]
    config = TextConfig(vocabulary=1, max_words=0, ngrams=[0], rows_per_word=0)
    assert [line.split(":")[0] for line in config.problems()] == ["vocabulary", "max_words", "rows_per_word", "ngrams"]
    assert TextConfig().problems() == []
