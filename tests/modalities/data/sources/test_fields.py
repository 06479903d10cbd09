"""Plain and dotted names of values, and what counts as missing."""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pytest

from core.errors import DataError
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.fields import class_name, column_of, is_missing, json_list, lookup

CHAT = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a cat"}, {"role": "end"}]
FIELDS = {
    "caption": {"en": "a cat", "de": "eine Katze", "long": {"en": "a grey cat"}},
    "caption.fr": "un chat",
    "messages": CHAT,
    "text": json.dumps({"en": "from JSON", "all": ["one", "two"]}),
    "pairs": [("en", "of a map")],
    "parts": [[{"text": "a"}], [{"text": "b"}, {"text": None}]],
    "nothing": None,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("caption.en", "a cat"),
        ("caption.long.en", "a grey cat"),
        ("caption.fr", "un chat"),  # a name is taken as it is, first
        ("caption.it", None),
        ("messages.1.content", "a cat"),
        ("messages.content", ["what is it", "a cat"]),
        ("messages.2.content", None),
        ("messages.9.content", None),
        ("text.en", "from JSON"),
        ("text.all", ["one", "two"]),
        ("text.all.1", "two"),
        ("pairs.en", "of a map"),
        ("parts.text", ["a", "b"]),
        ("nothing.en", None),
        ("absent.en", None),
        ("caption.en.more", None),
    ],
)
def test_dots_lead_inwards(name, expected):
    assert lookup(FIELDS, name) == expected


def test_the_column_of_a_dotted_name():
    names = ["caption", "caption.fr", "messages"]
    assert column_of("caption.fr", names) == "caption.fr"
    assert column_of("caption.fr.x", names) == "caption.fr"
    assert column_of("caption.en", names) == "caption"
    assert column_of("messages.0.content", names) == "messages"
    assert column_of("other.en", names) is None


def test_missing_and_the_names_of_classes():
    assert is_missing(None)
    assert is_missing(float("nan"))
    assert is_missing(np.float32("nan"))
    assert not is_missing("")
    assert not is_missing(0)
    values = {
        0.0: "0",
        1.5: "1.5",
        7: "7",
        True: "True",
        b"cat": "cat",
        "1.0": "1.0",
        float("inf"): "inf",
        np.float32(2): "2",
    }
    for value, expected in values.items():
        assert class_name(value) == expected
    assert class_name(float("nan")) is None
    assert class_name(None) is None
    assert class_name(Decimal(3)) == "3"


def test_lists_in_texts():
    assert json_list('["a cat", "b"]') == ["a cat", "b"]
    assert json_list("[]") == []
    for text in ("[a cat] on a mat", "[1, 2]", "a cat", "[" * 100_000):
        assert json_list(text) == text


def texts(fields: dict, *names: str, **settings) -> tuple[str, ...]:
    return CaptionRule(fields=names, **settings).texts(fields, None, "x")


def test_captions_by_dotted_names():
    assert texts(FIELDS, "caption.en", "messages.1.content") == ("a cat", "a cat")
    assert texts(FIELDS, "messages.content") == ("what is it", "a cat")


def test_one_unfit_field_beside_a_fit_one_costs_nothing():
    assert texts({"caption": {"en": "a"}, "captions": ["b"]}, "caption", "captions") == ("b",)
    assert texts({"caption": 5, "text": "b"}, "caption", "text") == ("b",)
    assert texts({"caption": ["a", None, float("nan"), 5, " "]}, "caption") == ("a",)


def test_nan_and_null_are_no_captions():
    for value in (None, float("nan"), [None], [float("nan"), None], [], ""):
        assert texts({"caption": value}, "caption", default="some") == ("some",)
        with pytest.raises(DataError, match="no caption"):
            texts({"caption": value}, "caption")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"en": "a", "de": "b"}, "fields en, de: name one of them, such as caption.en"),
        (CHAT, "fields role, content: name one of them, such as caption.0.role"),
        ({"size": 3, "en": "a"}, "such as caption.en"),
    ],
)
def test_an_unfit_field_is_told_with_the_names_inside(value, named):
    with pytest.raises(DataError, match=named):
        texts({"caption": value}, "caption")
    with pytest.raises(DataError, match="expected a text or a list of texts"):  # a default does not hide it
        texts({"caption": value}, "caption", default="some")
