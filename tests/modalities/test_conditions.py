"""Captions and labels become a Context; whether a sample drops its condition is drawn once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.base import Record
from modalities.conditions import ConditionConfig, Conditions
from modalities.text import TextConfig, collate_text

PICTURE = np.zeros((8, 8, 3), dtype=np.uint8)


def record(*captions: str, label: str | None = None) -> Record:
    return Record("key", "folder/file.png", PICTURE, captions=captions, label=label)


def draws(conditions: Conditions, item: Record, count: int = 600) -> list[tuple[str, bool]]:
    return [conditions.draw(item, generator("test", i)) for i in range(count)]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_the_share_of_dropped_conditions(dropout):
    dropped = [flag for _, flag in draws(Conditions(ConditionConfig(dropout=dropout), []), record("a cat"))]
    assert abs(np.mean(dropped) - dropout) < 0.06
    assert dropout > 0 or not any(dropped)


def test_each_caption_is_drawn_and_independently_of_dropping():
    found = draws(Conditions(ConditionConfig(dropout=0.5), []), record("a", "b", "c"))
    texts = [text for text, _ in found]
    assert {text: round(texts.count(text) / len(texts), 1) for text in "abc"} == {"a": 0.3, "b": 0.3, "c": 0.3}
    kept = [text for text, flag in found if not flag]
    assert 0.2 < kept.count("a") / len(kept) < 0.5


def test_the_draw_is_a_function_of_the_generator():
    conditions = Conditions(ConditionConfig(dropout=0.5), [])
    assert draws(conditions, record("a", "b"), 50) == draws(conditions, record("a", "b"), 50)


def test_text_and_labels_become_contexts():
    dropped = torch.tensor([True, False])
    config = ConditionConfig(text=TextConfig(vocabulary=64, max_words=3, rows_per_word=4))
    context = Conditions(config, []).context(["a cat", "two dogs"], dropped)
    tokens, valid = collate_text(["a cat", "two dogs"], config.text)
    assert torch.equal(context.tokens, tokens)
    assert torch.equal(context.valid, valid)
    assert torch.equal(context.dropped, dropped)
    assert context.label is None
    labels = Conditions(ConditionConfig(kind="label"), ["cat", "dog"])
    assert labels.context(["dog", "cat"], dropped).label.tolist() == [1, 0]
    assert labels.draw(record("text is not looked at", label="dog"), generator("test"))[0] == "dog"


def test_what_a_record_lacks_is_named():
    with pytest.raises(DataError, match=r"folder/file\.png: has no caption"):
        Conditions(ConditionConfig(), []).draw(record(), generator("test"))
    with pytest.raises(DataError, match=r"label 'cow' is not among the 2 classes"):
        Conditions(ConditionConfig(kind="label"), ["cat", "dog"]).draw(record(label="cow"), generator("test"))
    with pytest.raises(ConfigError, match=r"class 'dgo' is not one of the run's classes\. Did you mean: 'dog'"):
        Conditions(ConditionConfig(kind="label"), ["cat", "dog"]).context(["dgo"], torch.tensor([False]))


def test_problems_of_the_settings():
    assert ConditionConfig().problems() == []
    found = ConditionConfig(kind="pictures", dropout=1.0, encoder_depth=-1).problems()
    assert [line.partition(":")[0] for line in found] == ["kind", "dropout", "encoder_depth"]
