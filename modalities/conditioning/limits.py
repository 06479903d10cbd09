"""What the length limits of a text encoder cut: one count for training, the dry run, inspection and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modalities.conditioning.bytes import TextConfig, split_words, word_pieces

# A word that keeps less than this share of its rows, and is longer than words are, is reported: a sentence in a script
# without spaces, a link. Of others the first row, that of the whole word, is enough.
WORD_SHARE, WORD_BYTES = 0.5, 32


@dataclass(frozen=True)
class TextLength:
    """
    Attributes:
        length: words, or tokens with those that the tokenizer adds.
        shortened: words that lose n-grams, with the share of their rows that is kept; the first row, that of the whole
            word, always is.
    """

    length: int
    shortened: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TextLimit:
    """How long a text may be, and how long one is.

    Attributes:
        unit: words or tokens.
        setting: dotted key of the limit.
        limit: the length beyond which a text loses its end; None where nobody has set one.
        measure: texts -> their lengths, without any limit.
        word_setting, word_limit: of the rows of one word; "" and None where there is none.
    """

    unit: str
    setting: str
    limit: int | None
    measure: Callable[[Sequence[str]], list[TextLength]]
    word_setting: str = ""
    word_limit: int | None = None

    def cut(self, length: TextLength) -> bool:
        return self.limit is not None and length.length > self.limit


def word_limit(config: TextConfig | None) -> TextLimit:
    """The limit of the byte-level encoder; words without a limit where there is no configuration."""
    if config is None:
        return TextLimit(
            "words", "condition.text.max_words", None, lambda texts: [_words(text, None) for text in texts]
        )
    return TextLimit(
        "words",
        "condition.text.max_words",
        config.max_words,
        lambda texts: [_words(text, config) for text in texts],
        "condition.text.rows_per_word",
        config.rows_per_word,
    )


def token_limit(limit: int, count: Callable[[Sequence[str]], list[int]]) -> TextLimit:
    """The limit of a frozen encoder; `count` gives the tokens of texts, uncut."""
    return TextLimit(
        "tokens", "condition.encoder.max_tokens", limit, lambda texts: [TextLength(found) for found in count(texts)]
    )


def describe_cut(text: str, found: TextLength, limit: TextLimit) -> list[str]:
    """What one text loses, in words; empty where nothing of weight is lost."""
    lines = []
    if limit.cut(found):
        lines.append(
            f"{shortened(text)!r} has {found.length} {limit.unit}, and the model reads {limit.limit} "
            f"({limit.setting}): its end is cut off"
        )
    lines += [
        f"the word {shortened(word, 40)!r} is long: {share:.0%} of its spelling is read ({limit.word_setting} "
        f"{limit.word_limit})"
        for word, share in found.shortened
        if mostly_lost(word, share)
    ]
    return lines


def mostly_lost(word: str, share: float) -> bool:
    """Whether too little of a word is read, by the share of its rows."""
    return share < WORD_SHARE and len(word.encode("utf-8", "surrogatepass")) > WORD_BYTES


def shortened(text: str, length: int = 60) -> str:
    """A text for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _words(text: str, config: TextConfig | None) -> TextLength:
    words = split_words(text) or [""]
    if config is None:
        return TextLength(len(words))
    pieces = {word: word_pieces(word, config) for word in dict.fromkeys(words[: config.max_words])}
    return TextLength(
        len(words),
        tuple((word, config.rows_per_word / count) for word, count in pieces.items() if count > config.rows_per_word),
    )
