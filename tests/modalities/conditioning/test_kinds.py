"""The settings of a frozen text encoder."""

from __future__ import annotations

import pytest

from modalities.conditioning import TextEncoderConfig
from modalities.conditioning.kinds import KINDS


@pytest.mark.parametrize(
    ("kind", "width", "length", "layers"),
    [
        ("t5", 4096, 512, ()),
        ("umt5", 4096, 512, ()),
        ("clip", 768, 77, ()),
        ("bert", 384, 256, ()),
        ("qwen3", 7680, 512, (9, 18, 27)),
    ],
)
def test_defaults_are_those_of_the_published_models(kind, width, length, layers):
    config = TextEncoderConfig(kind)
    assert config.problems() == []
    assert (config.channels(), config.length(), config.taken_layers()) == (width, length, layers)
    assert TextEncoderConfig(kind, layers=[2, 5]).channels() == 2 * KINDS[kind].width
    assert TextEncoderConfig(kind, layers=[2, 5], width=64, max_tokens=9).channels() == 64
    assert TextEncoderConfig(kind, max_tokens=9).length() == 9


def test_problems():
    assert TextEncoderConfig("qwen").problems() == [
        "kind: 'qwen' is not one of t5, umt5, clip, bert, qwen3. Did you mean: 'qwen3'?"
    ]
    found = TextEncoderConfig("t5", max_tokens=0, width=-1, layers=[0], precision="fp16").problems()
    assert [line.partition(":")[0] for line in found] == ["max_tokens", "width", "layers", "precision"]
    assert "layers: [3, 3] must be different" in TextEncoderConfig("t5", layers=[3, 3]).problems()[0]
