"""Text as context tokens: hashed bytes that need no download, or features of a frozen text encoder."""

from modalities.text.bytes import TextConfig, collate_text, encode_text, split_words, word_rows
from modalities.text.encoder import TextEncoder
from modalities.text.kinds import TextEncoderConfig

__all__ = [
    "TextConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "collate_text",
    "encode_text",
    "split_words",
    "word_rows",
]
