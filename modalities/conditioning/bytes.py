"""Text as context tokens without a download: each word is a bag of hashed rows of a table that the trunk learns.

A word's rows are the hash of its UTF-8 bytes and of their n-grams, so that words that look alike share rows, and any
language, typing error or emoji has a representation (the subword idea of Bojanowski et al. 2017, on bytes).
"""

from __future__ import annotations

import unicodedata
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

# Around a word before its n-grams are taken; neither byte occurs in printable UTF-8.
START, END = b"\x02", b"\x03"


@dataclass
class TextConfig:
    """
    Attributes:
        vocabulary: V, rows of the learned table; row 0 is padding.
        max_words: S, context tokens; the words after that are cut off.
        ngrams: lengths of the byte n-grams, word boundaries included.
        rows_per_word: G, rows summed into one token; the n-grams of a long word that go beyond are left out.
    """

    vocabulary: int = 4096
    max_words: int = 16
    ngrams: list[int] = field(default_factory=lambda: [3, 4])
    rows_per_word: int = 16

    def problems(self) -> list[str]:
        found = []
        if self.vocabulary < 2:
            found.append(f"vocabulary: {self.vocabulary} must be at least 2 (row 0 is padding)")
        for name in ("max_words", "rows_per_word"):
            if getattr(self, name) < 1:
                found.append(f"{name}: {getattr(self, name)} must be at least 1")
        if any(length < 1 for length in self.ngrams):
            found.append(f"ngrams: {list(self.ngrams)} must all be at least 1 byte")
        return found


def split_words(text: str) -> list[str]:
    """Lower-cased words in order; a mark of punctuation, a symbol and an East Asian wide character is a word alone."""
    words, open_word = [], False
    for character in unicodedata.normalize("NFC", text).lower():
        if character.isspace():
            open_word = False
        elif unicodedata.category(character)[0] in "PS" or unicodedata.east_asian_width(character) in "WF":
            words.append(character)
            open_word = False
        elif open_word:
            words[-1] += character
        else:
            words.append(character)
            open_word = True
    return words


def word_rows(word: str, config: TextConfig) -> list[int]:
    """At most G distinct rows in [1, V): the word itself first, then its n-grams in order."""
    return list(_all_rows(word, config.vocabulary, *config.ngrams)[: config.rows_per_word])


def word_pieces(word: str, config: TextConfig) -> int:
    """Rows that a word would have without a limit."""
    return len(_all_rows(word, config.vocabulary, *config.ngrams))


@lru_cache(maxsize=2**14)  # captions repeat their words
def _all_rows(word: str, vocabulary: int, *ngrams: int) -> tuple[int, ...]:
    data = word.encode("utf-8", "surrogatepass")
    marked = START + data + END
    pieces = [START * 2 + data]  # differs from every n-gram, also from the one that spans the whole word
    for length in ngrams:
        pieces += [marked[i : i + length] for i in range(len(marked) - length + 1)]
    return tuple(dict.fromkeys(1 + zlib.crc32(piece) % (vocabulary - 1) for piece in pieces))


def encode_text(text: str, config: TextConfig) -> tuple[Tensor, Tensor]:
    """(ids (S, G) int64, valid (S,) bool): one token a word, 0 is padding.

    Words beyond `max_words` are cut off. A text without a word has one valid token, that of the empty word, so that
    attention over the context is never empty.
    """
    words = (split_words(text) or [""])[: config.max_words]
    bags = [word_rows(word, config) for word in words] + [[]] * (config.max_words - len(words))
    ids = torch.tensor([bag + [0] * (config.rows_per_word - len(bag)) for bag in bags])  # (S, G)
    return ids, torch.arange(config.max_words) < len(words)


def collate_text(texts: list[str], config: TextConfig) -> tuple[Tensor, Tensor]:
    """(tokens (B, S, G) int64, valid (B, S) bool), always with S = max_words, so that shapes are static."""
    ids, valid = zip(*(encode_text(text, config) for text in texts), strict=True)
    return torch.stack(ids), torch.stack(valid)
