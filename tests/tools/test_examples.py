"""The trained model that comes along: small, without a path of the machine that made it, and it generates."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tools.cli import main

EMOJI = Path(__file__).resolve().parents[2] / "examples" / "emoji"
MOST_BYTES = 6 * 2**20


def test_it_is_small_and_knows_no_machine():
    assert sum(path.stat().st_size for path in EMOJI.iterdir() if path.is_file()) < MOST_BYTES
    weights = load_file(EMOJI / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    about = json.loads((EMOJI / "model.json").read_text())
    parts = about["extra"]["config"]["streams"]["image"]["data"]["parts"]
    assert {part["path"] for part in parts.values()} == {"../data/emoji.parquet"}
    assert about["extra"]["config"]["run"] == ""
    assert "Apache-2.0" in (EMOJI / "README.md").read_text()


@pytest.mark.parametrize(("prompt", "channel"), [("red heart", 0), ("green heart", 1), ("blue heart", 2)])
def test_it_generates_what_it_is_asked_for(prompt, channel, tmp_path):
    asked = ["--prompt", prompt, "--number", "4", "--steps", "8", "--out", str(tmp_path), "--quiet"]
    assert main(["generate", "image", "--run", str(EMOJI), *asked]) == 0
    made = np.stack([np.asarray(Image.open(path), dtype=float) for path in tmp_path.glob("0*.png")])
    assert made.shape == (4, 24, 24, 3)
    middle = made[:, 8:16, 8:16].mean((0, 1, 2))
    assert middle.argmax() == channel, middle
    assert made[:, 20:, :4].min() > 200  # white beside the tip


def test_its_data_are_made_from_two_checkouts(tmp_path, monkeypatch):
    names = {
        "\N{RED APPLE}": {"name": "red apple", "group": "Food & Drink"},
        "\N{HEAVY BLACK HEART}\ufe0f": {"name": "red heart", "group": "Smileys & Emotion"},
        "\N{GRINNING FACE}": {"name": "grinning face", "group": "Smileys & Emotion"},
    }
    pictures = tmp_path / "noto" / "png" / "128"
    pictures.mkdir(parents=True)
    for code in ("1f34e", "2764"):
        (pictures / f"emoji_u{code}.png").write_bytes(code.encode())
    (tmp_path / "data-by-emoji.json").write_text(json.dumps(names))
    out = tmp_path / "data" / "emoji.parquet"
    monkeypatch.setattr(sys, "argv", ["prepare.py", str(tmp_path / "noto"), str(tmp_path), str(out)])
    runpy.run_path(str(EMOJI / "prepare.py"), run_name="__main__")
    found = pq.read_table(out).to_pylist()
    assert [(row["name"], row["image"], row["style"]) for row in found] == [
        ("red apple", b"1f34e", "noto"),
        ("red heart", b"2764", "noto"),
    ]
    # CRC-32 of "apple" is a multiple of 8, those of "red" and "heart" are not
    assert [row["unseen"] for row in found] == ["True", "False"]
