"""selfflow encode --text: stored features of captions are those that are computed online, and stand in for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
pytest.importorskip("transformers", reason="text encoders are read with transformers")

from configs.assembly import Assembly
from configs.load import load_config
from core.types import Context
from tests.modalities.conditioning.small import WIDTH, save_text_encoder
from tests.tools.tiny import CONFIG, published, train
from tools.cli import main

IMAGES = "streams={video: null, audio: null}"
COUNT = "streams.image.data.count=12"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return save_text_encoder(tmp_path_factory.mktemp("text") / "t5")


def settings(path: Path, **changes) -> str:
    values = {"kind": "t5", "path": path, "max_tokens": 8, "width": WIDTH} | changes
    return f"condition.encoder={{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"


def encode(out: Path, *options: str) -> int:
    return main(["encode", str(CONFIG), "--out", str(out), "--workers", "0", "--text", IMAGES, COUNT, *options])


def latents(path: Path) -> str:
    return f"streams.image.data={{kind: latents, path: {path / 'image'}}}"


@pytest.fixture(scope="module")
def stored(encoder, tmp_path_factory) -> Path:
    """Features in the default precision, bf16."""
    path = tmp_path_factory.mktemp("stored")
    assert encode(path, settings(encoder)) == 0
    return path


def contexts(*overrides: str) -> dict[str, Context]:
    """key -> what the trunk sees of a record's caption, completed as on the device."""
    config = load_config(CONFIG, [IMAGES, "condition.cfg_dropout=0", *overrides])
    assembly = Assembly(config, Path())
    dataset, source = assembly.dataset, assembly.sources["image"]
    found = {}
    for index in range(6):
        sample = dataset.draw("image", source.read(index), 0)
        found[sample.key] = assembly.preprocess(dataset.collate("image", [sample], ())).batch.context
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_stored_features_are_those_computed_online(precision, encoder, stored, tmp_path):
    own = settings(encoder, precision=precision)
    if precision == "fp32":
        stored = tmp_path
        assert encode(stored, own) == 0
    online, read = contexts(own, COUNT), contexts(own, latents(stored))
    assert online.keys() == read.keys()
    for key, context in online.items():
        assert torch.equal(context.tokens, read[key].tokens)
        assert torch.equal(context.valid, read[key].valid)
        assert context.tokens.abs().sum() > 0


def test_the_manifest_says_whose_features_they_are(stored, encoder):
    text = json.loads((stored / "image" / "manifest.json").read_text())["text"]
    assert text["encoder"]["kind"] == "t5"
    assert (text["width"], text["dtype"], text["path"]) == (WIDTH, "bfloat16", str(encoder))
    assert len(text["digest"]) > 8


def test_training_needs_no_text_encoder(stored, encoder, tmp_path):
    gone = settings(tmp_path / "nowhere")
    assert train(tmp_path / "run", IMAGES, gone, latents(stored), "training.steps=3") == 0
    assert published(tmp_path / "run") == [3]


def test_features_of_another_encoder_are_refused(stored, encoder, tmp_path, capsys):
    other = settings(encoder, max_tokens=7)
    assert train(tmp_path / "run", IMAGES, other, latents(stored)) == 2
    error = capsys.readouterr().err
    assert "condition.encoder.max_tokens: 7, and the text features of streams.image.data were made with 8" in error


def test_features_are_not_stored_unless_asked(tmp_path, encoder, capsys):
    command = ["encode", str(CONFIG), "--out", str(tmp_path), "--workers", "0", IMAGES, COUNT]
    assert main([*command, settings(encoder)]) == 0
    assert json.loads((tmp_path / "image" / "manifest.json").read_text())["text"] is None
    assert main([*command, settings(encoder), "--text"]) == 2
    assert "--text: None when" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "image")
    assert main([*command, "--text"]) == 2
    assert "--text: condition.encoder is not set" in capsys.readouterr().err
