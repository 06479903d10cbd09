"""What weights mean beyond their shapes: the document of every configuration, and what its comparison says."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import configs
from autoencoders.base import LatentNormalization
from configs.assembly.adapters import build_adapters
from configs.load import load_config
from configs.weight_metadata import LAYOUT, meaning_problems, normalization_problems, weights_meaning
from core.errors import CheckpointError, ConfigError
from tests.tools.tiny import CONFIG

HOME = Path(configs.__file__).parent
EXAMPLES = sorted(path for path in (*HOME.glob("*.yaml"), *HOME.glob("paper/*.yaml")) if path.stem != "common")
SIT = CONFIG.with_name("tiny_sit.yaml")
LABELS = ["a", "b", "c"]


def document(path: Path, *overrides: str, labels=(), normalization=None, digests=None, text="") -> dict:
    """As a file brings it back."""
    config = load_config(path, list(overrides))
    adapters = build_adapters(config, path.parent)
    return json.loads(
        json.dumps(weights_meaning(config, adapters, list(labels), normalization or {}, digests or {}, text))
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_configuration_agrees_with_itself(path):
    pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")
    found = document(path)
    assert meaning_problems(found, document(path), []) == []
    assert len(found["meaning"]) > 5
    places = {value for value in json.dumps(found["settings"]).split('"') if value in ("path", "tokenizer")}
    assert not places  # where files lie says nothing of the weights, and something of a machine


def test_a_digest_is_compared_where_both_know_it():
    one, other = (document(SIT, labels=LABELS, digests={"image": name}) for name in ("d1", "d2"))
    key = "media.image.autoencoder"
    assert meaning_problems(one, other, []) == [f"{key}: weights d2, the file's are of d1"]
    assert meaning_problems(one, other, [f"{key}.digest"]) == []
    assert meaning_problems(one, document(SIT, labels=LABELS), []) == []
    assert meaning_problems(document(SIT, labels=LABELS), one, []) == []


def test_frozen_text_encoders():
    encoder = "condition.encoder={kind: t5, path: x, width: 16, max_tokens: 8}"
    one, other = (document(CONFIG, encoder, text=text) for text in ("e1", "e2"))
    assert meaning_problems(one, other, []) == ["condition.encoder: weights e2, the file's are of e1"]
    shorter = document(CONFIG, encoder, "condition.encoder.max_tokens=6", "condition.encoder.precision=fp32")
    (line,) = meaning_problems(one, shorter, [])
    assert line == "condition.encoder.max_tokens: 6, and the file's weights were trained with 8"
    # Another reader of text altogether: one line, not one for each of its settings.
    lines = meaning_problems(one, document(CONFIG, "condition.kind=label", labels=LABELS), [])
    assert lines[0] == "condition.kind: 'label', and the file's weights were trained with 'text'"
    assert [line.split(":")[0] for line in lines] == ["condition.kind", "labels"]


def test_modalities_of_one_side_are_left_to_the_names_of_the_weights():
    joint, alone = document(CONFIG), document(CONFIG, "streams.video=null", "streams.audio=null")
    assert meaning_problems(joint, alone, []) == []
    assert meaning_problems(alone, joint, []) == []


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["b", "a", "c"], "labels: class 0 is 'b', and 'a' in the file in another order"),
        (["a", "b", "d"], "labels: class 2 is 'd', and 'c' in the file"),
        (["a", "b"], "labels: 2 classes, and the file's weights were trained with 3"),
    ],
)
def test_class_names(labels, line):
    file = document(SIT, labels=LABELS)
    assert meaning_problems(file, document(SIT, labels=labels), []) == [line]
    assert meaning_problems(file, document(SIT, labels=labels), ["labels"]) == []


def test_a_file_of_another_layout_and_one_that_says_nothing():
    own = document(SIT, labels=LABELS)
    newer = copy.deepcopy(own) | {"layout": LAYOUT + 1, "version": "9.9"}
    with pytest.raises(CheckpointError, match=rf"layout {LAYOUT + 1}, written by version 9\.9"):
        meaning_problems(newer, own, [])
    assert meaning_problems({}, own, []) == []
    with pytest.raises(ConfigError, match="Did you mean: 'labels'"):
        meaning_problems(own, own, ["label"])


@pytest.mark.parametrize(
    ("mean", "std", "line"),
    [
        (0.1, 0.5, None),
        (0.10001, 0.50002, None),
        (0.2, 0.5, "means differ by up to 0.2 deviations, deviations by a factor of up to 1"),
        (0.1, 0.25, "means differ by up to 0 deviations, deviations by a factor of up to 2"),
        (0.1, 1.0, "means differ by up to 0 deviations, deviations by a factor of up to 2"),
    ],
)
def test_statistics(mean, std, line):
    file = document(SIT, normalization={"image": LatentNormalization(torch.full((48,), 0.1), torch.full((48,), 0.5))})
    own = {"image": LatentNormalization(torch.full((48,), mean), torch.full((48,), std)), "video": None}
    assert normalization_problems(file, own) == ({} if line is None else {"image": line})
    assert normalization_problems(file, {}) == {}
    shape = normalization_problems(file, {"image": LatentNormalization(torch.zeros(4, 48), torch.ones(4, 48))})
    assert shape == {"image": "statistics of shape (48,), and here (4, 48)"}
