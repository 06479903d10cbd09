"""Texts that a limit cuts are told by training, the dry run, inspection, generation and encoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.modalities.making import image_bytes, numbered
from tests.tools.tiny import CONFIG, train
from tools.cli import main

LONG = "a red circle over a blue square on a white ground with a thin black line below"
ALONE = "streams={video: null, audio: null}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """40 images, of which 10 have a caption of 17 words, 30 one of two."""
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(numbered(40, 8, 8)):
        (folder / f"{index:02d}.png").write_bytes(image_bytes(pixels))
        (folder / f"{index:02d}.txt").write_text(LONG if index < 10 else "a circle")
    return folder


def settings(photos: Path) -> list[str]:
    return [ALONE, f"streams.image.data={{kind: folder, path: {photos}}}", "training.ema.decay=0.1"]


def warned(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning") and "condition." in line]


def test_training_and_its_dry_run_tell_the_share_and_the_longest(photos, tmp_path, capsys):
    assert main(["train", str(CONFIG), "--dry-run", *settings(photos)]) == 0
    shown = capsys.readouterr().out
    assert "  captions  median 2 words, 95% at most 17, the longest 17 (of all of 40 records); 25% cut after 6" in shown
    (line,) = warned(shown)
    assert "streams.image.data: 25% of the captions have more than the 6 words of condition.text.max_words" in line
    assert "condition.text.max_words=17 keeps all" in line
    assert "a red circle over a blue square" in line
    for steps in (1, 2):  # the second start resumes
        assert train(tmp_path / "run", *settings(photos), f"training.steps={steps}") == 0
    assert warned(capsys.readouterr().err) == [line]
    assert train(tmp_path / "other", *settings(photos), "training.steps=1", "condition.text.max_words=17") == 0
    assert warned(capsys.readouterr().err) == []


def test_inspection_shows_the_lengths_of_a_bare_folder_but_not_of_stand_ins(photos, tmp_path, capsys):
    assert main(["inspect", str(photos), "--data", "image"]) == 0
    assert "captions  median 2 words, 95% at most 17, the longest 17 (of all of 40" in capsys.readouterr().out
    (tmp_path / "one.png").write_bytes((photos / "00.png").read_bytes())
    assert main(["inspect", str(tmp_path), "--data", "image"]) == 0
    assert "median" not in capsys.readouterr().out


def test_generation_warns_and_writes_it_beside_the_file(tiny_run, tmp_path, capsys):
    command = ["generate", "image", "--run", str(tiny_run), "--out", str(tmp_path), "--steps", "1"]
    assert main([*command, "--prompt", LONG, "--prompt", "a circle", "--number", "2"]) == 0
    (line,) = warned(capsys.readouterr().err)
    assert "has 17 words, and the model reads 6 (condition.text.max_words): its end is cut off" in line
    told = [json.loads(path.read_text())["text"] for path in sorted(tmp_path.glob("0*.json"))]
    assert [(entry["words"], entry["limit"], entry["cut"]) for entry in told] == [(17, 6, True)] * 2 + [
        (2, 6, False)
    ] * 2
    assert list(told[3]["words_read_in_part"]) == ["circle"]  # 4 rows a word


def test_frozen_encoders_count_their_tokens(photos, tmp_path, capsys):
    pytest.importorskip("transformers", reason="text encoders are read with transformers")
    pytest.importorskip("tokenizers", reason="tokenizers are read with transformers")
    from tests.modalities.conditioning.small import WIDTH, save_text_encoder

    encoder = save_text_encoder(tmp_path / "t5", "t5")
    own = [f"condition.encoder={{kind: t5, path: {encoder}, max_tokens: 6, width: {WIDTH}, precision: fp32}}"]
    assert main(["train", str(CONFIG), "--dry-run", *settings(photos), *own]) == 0
    shown = capsys.readouterr().out
    assert "25% cut after 6 (condition.encoder.max_tokens)" in shown
    assert train(tmp_path / "run", *settings(photos), *own, "training.steps=1") == 0
    (line,) = warned(capsys.readouterr().err)
    assert "25% of the captions have more than the 6 tokens of condition.encoder.max_tokens" in line
    assert main(["generate", "image", "--run", str(tmp_path / "run"), "--prompt", LONG]) == 0
    (line,) = warned(capsys.readouterr().err)
    assert "tokens, and the model reads 6 (condition.encoder.max_tokens): its end is cut off" in line


def test_a_tokenizer_that_is_not_here_is_said_in_the_dry_run(photos, capsys):
    own = "condition.encoder={kind: t5, path: google/t5-v1_1-nowhere}"
    assert main(["train", str(CONFIG), "--dry-run", *settings(photos), own]) == 0
    assert "  captions  not counted: google/t5-v1_1-nowhere is not on this machine" in capsys.readouterr().out


def test_encoding_text_warns_of_what_it_stores_cut(photos, tmp_path, capsys):
    pytest.importorskip("streaming", reason="encoding writes MDS")
    pytest.importorskip("tokenizers", reason="tokenizers are read with transformers")
    from tests.modalities.conditioning.small import WIDTH, save_text_encoder

    encoder = save_text_encoder(tmp_path / "t5", "t5")
    own = [f"condition.encoder={{kind: t5, path: {encoder}, max_tokens: 6, width: {WIDTH}, precision: fp32}}"]
    command = ["encode", str(CONFIG), "--out", str(tmp_path / "latents"), "--text", *settings(photos), *own]
    assert main(command) == 0
    assert len(warned(capsys.readouterr().err)) == 1
    latents = f"streams.image.data={{kind: latents, path: {tmp_path / 'latents' / 'image'}}}"
    assert train(tmp_path / "run", ALONE, latents, *own, "training.steps=1", "training.ema.decay=0.1") == 0
    (line,) = warned(capsys.readouterr().err)
    assert "25% of the captions fill the 6 tokens of condition.encoder.max_tokens" in line
