"""Captions and labels become a Context; whether a sample drops its condition is drawn once."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.base import Record
from modalities.conditioning import TextConfig, TextEncoder, TextEncoderConfig, collate_text
from modalities.conditioning.conditions import CONDITIONS, ConditionConfig, Conditions, Prompt

IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


def record(*captions: str, label: str | None = None) -> Record:
    return Record("key", "folder/file.png", IMAGE, captions=captions, label=label)


def draws(conditions: Conditions, item: Record, count: int = 600) -> list[tuple[Prompt, bool]]:
    return [conditions.draw(item, generator("test", i)) for i in range(count)]


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_the_share_of_dropped_conditions(dropout):
    dropped = [flag for _, flag in draws(Conditions(ConditionConfig(cfg_dropout=dropout), []), record("a cat"))]
    assert abs(np.mean(dropped) - dropout) < 0.06
    assert dropout > 0 or not any(dropped)


def test_each_caption_is_drawn_and_independently_of_dropping():
    found = draws(Conditions(ConditionConfig(cfg_dropout=0.5), []), record("a", "b", "c"))
    texts = [prompt.text for prompt, _ in found]
    assert {text: round(texts.count(text) / len(texts), 1) for text in "abc"} == {"a": 0.3, "b": 0.3, "c": 0.3}
    kept = [prompt.text for prompt, flag in found if not flag]
    assert 0.2 < kept.count("a") / len(kept) < 0.5


def test_the_draw_is_a_function_of_the_generator():
    conditions = Conditions(ConditionConfig(cfg_dropout=0.5), [])
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
    assert labels.draw(record("text is not looked at", label="dog"), generator("test"))[0] == Prompt("dog")


def test_what_a_record_lacks_is_named():
    with pytest.raises(DataError, match=r"folder/file\.png: has no caption"):
        Conditions(ConditionConfig(), []).draw(record(), generator("test"))
    with pytest.raises(DataError, match=r"label 'cow' is not among the 2 classes"):
        Conditions(ConditionConfig(kind="label"), ["cat", "dog"]).draw(record(label="cow"), generator("test"))
    with pytest.raises(ConfigError, match=r"class 'dgo' is not one of the run's classes\. Did you mean: 'dog'"):
        Conditions(ConditionConfig(kind="label"), ["cat", "dog"]).context(["dgo"], torch.tensor([False]))


def test_a_chosen_caption_takes_the_place_of_a_random_one():
    conditions, several = Conditions(ConditionConfig(cfg_dropout=0.5), []), record("bb", "dddd", "a", "ccc", "eeee")
    wanted = {"longest": "dddd", "middle": "ccc", "first": "bb"}
    for choice, text in wanted.items():
        found = [conditions.draw(several, generator("test", i), choice) for i in range(50)]
        assert {prompt.text for prompt, _ in found} == {text}
        assert [flag for _, flag in found] == [flag for _, flag in draws(conditions, several, 50)]
        assert conditions.chosen(several, choice) == Prompt(text)
    assert conditions.chosen(several) == Prompt("dddd")  # evaluation: the most detailed
    assert conditions.chosen(record("aa", "b"), "middle") == Prompt("b")


FROZEN = ConditionConfig(encoder=TextEncoderConfig("t5", max_tokens=4, width=3, precision="fp32"))


def stored(*lengths: int, width: int = 3) -> Record:
    """Captions of the letters a, b, ..., with features of these lengths, each filled with its place + 1."""
    letters = "abcdefgh"[: len(lengths)]
    text = tuple(torch.full((length, width), float(i + 1)) for i, length in enumerate(lengths))
    return Record("key", "folder/file.png", IMAGE, captions=tuple(letters), text=text)


def test_stored_features_go_with_their_caption():
    conditions = Conditions(FROZEN, [])
    for prompt, _ in draws(conditions, stored(2, 5, 1), 30):
        place = "abc".index(prompt.text)
        assert torch.equal(prompt.features, torch.full(((2, 5, 1)[place], 3), place + 1.0))
    assert Conditions(ConditionConfig(), []).chosen(stored(2)).features is None  # the byte-level encoder reads captions


def test_contexts_hold_what_is_stored_and_name_what_is_not():
    conditions, dropped = Conditions(FROZEN, []), torch.tensor([False, False, True, True, False])
    prompts = [Prompt("a", torch.ones(2, 3)), "b", Prompt("c", torch.ones(9, 3)), "d", Prompt("e", torch.ones(6, 3))]
    context = conditions.context(prompts, dropped)
    assert context.tokens.shape == (5, 4, 3)  # max_tokens; the dropped one is not carried along
    assert context.valid.sum(dim=1).tolist() == [2, 0, 0, 0, 4]
    assert torch.equal(context.tokens, context.valid[..., None].expand(-1, -1, 3).float())
    assert conditions.texts(prompts, dropped) == (None, "b", None, None, None)
    assert conditions.context(prompts[1:4], dropped[1:4]).tokens is None
    assert conditions.context(prompts[:2], dropped[:2]).tokens.shape == (2, 2, 3)  # the rest is padded on the device
    assert Conditions(ConditionConfig(), []).texts(["a"], dropped[:1]) == ()


def test_a_completed_context_has_the_size_of_the_blank_one():
    conditions, dropped = Conditions(FROZEN, []), torch.tensor([False, True])
    prompts = [Prompt("a", torch.ones(2, 3)), "b"]
    context = conditions.context(prompts, dropped)
    complete = TextEncoder(FROZEN.encoder).complete(context, conditions.texts(prompts, dropped))
    blank = conditions.blank(context)
    assert (blank.tokens.shape, blank.tokens.dtype) == (complete.tokens.shape, complete.tokens.dtype)
    assert torch.equal(complete.tokens[:, :2], context.tokens)
    bytewise = Conditions(ConditionConfig(), [])
    assert bytewise.blank(bytewise.context(["a"], dropped[:1])).tokens.dtype == torch.int64


def test_stored_features_that_do_not_fit_are_named():
    conditions = Conditions(FROZEN, [])
    with pytest.raises(DataError, match=r"file\.png: stored text features of shape \(2, 5\), .*width is 3"):
        conditions.chosen(stored(2, width=5))
    lacking = Record("key", "file.png", IMAGE, captions=("a", "b"), text=(torch.ones(1, 3),))
    with pytest.raises(DataError, match="2 captions, but stored features of 1"):
        conditions.chosen(lacking)
    broken = Record("key", "file.png", IMAGE, captions=("a",), text=(torch.full((1, 3), float("nan")),))
    with pytest.raises(DataError, match="hold NaN or infinite values"):
        conditions.chosen(broken)


def test_problems_of_the_settings():
    assert ConditionConfig().problems() == []
    found = ConditionConfig(cfg_dropout=1.0, encoder_depth=-1).problems()
    assert [line.partition(":")[0] for line in found] == ["cfg_dropout", "encoder_depth"]
    assert "cfg_dropout: -0.1 must lie in [0, 1)" in ConditionConfig("label", cfg_dropout=-0.1).problems()
    with pytest.raises(ConfigError, match="kind: 'pictures' is not one of text, label, none"):
        ConditionConfig("pictures")
    names = {kind: {entry.name for entry in fields(row)} for kind, row in CONDITIONS.items()}
    assert names == {
        "text": {"kind", "cfg_dropout", "encoder_depth", "text", "encoder"},
        "label": {"kind", "cfg_dropout"},
        "none": {"kind"},
    }
