"""Text as context tokens: hashed bytes that need no download, or features of a frozen text encoder."""

from modalities.conditioning.bytes import TextConfig, collate_text, encode_text, split_words, word_rows
from modalities.conditioning.encoder import TextEncoder
from modalities.conditioning.kinds import TextEncoderConfig
from modalities.conditioning.limits import TextLength, TextLimit, describe_cut, token_limit, word_limit

__all__ = [
    "TextConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "TextLength",
    "TextLimit",
    "collate_text",
    "describe_cut",
    "encode_text",
    "split_words",
    "token_limit",
    "word_limit",
    "word_rows",
]
