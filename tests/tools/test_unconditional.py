"""condition.kind: none, from a folder of images without captions to generated ones, on every trunk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.runs import load_run
from tests.modalities.making import image_bytes, numbered
from tests.tools.tiny import CONFIG, train
from tools.cli import main

SIT, RAE = CONFIG.with_name("tiny_sit.yaml"), CONFIG.with_name("tiny_rae.yaml")
ALONE = "streams={video: null, audio: null}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(numbered(60, 8, 8)):
        (folder / f"{index:02d}.png").write_bytes(image_bytes(pixels))
    return folder


@pytest.mark.parametrize(
    ("config", "own"),
    [(CONFIG, [ALONE]), (SIT, ["trunk.sit.num_classes=2"]), (SIT, [])],
    ids=["mmdit", "sit", "sit with the rows of classes"],
)
def test_a_folder_without_captions_is_trained_on_generated_from_and_evaluated(photos, tmp_path, config, own, capsys):
    settings = ["condition.kind=none", f"streams.image.data={{kind: folder, path: {photos}}}", *own]
    assert main(["train", str(config), "--dry-run", *settings]) == 0
    assert "condition 1 token a sample" in capsys.readouterr().out
    run = tmp_path / "run"
    assert train(run, *settings, "training.steps=2", config=config) == 0
    assert main(["generate", "image", "--run", str(run), "--number", "2"]) == 0
    made = sorted((run / "generated" / "image").glob("0*.png"))
    assert len(made) == 2
    assert json.loads(made[0].with_suffix(".json").read_text())["prompt"] == ""
    val = f"streams.image.val={{kind: folder, path: {photos}, split: test, holdout: 0.5}}"
    data = f"streams.image.data={{kind: folder, path: {photos}, captions: none, split: train, holdout: 0.5}}"
    measured = "streams.image.evaluation={measures: [velocity, health], val: 8, training: 8, batch: 4}"
    assert main(["evaluate", "--run", str(run), data, val, measured]) == 0
    (result,) = (run / "evaluation").glob("*.json")
    assert all(np.isfinite(value) for value in json.loads(result.read_text())["values"].values())


def test_every_sample_has_the_null_condition_so_that_guidance_changes_nothing(photos, tmp_path):
    settings = ["condition.kind=none", f"streams.image.data={{kind: folder, path: {photos}}}", ALONE]
    run = tmp_path / "run"
    assert train(run, *settings, "training.steps=2") == 0
    generator = load_run(run, device="cpu").generator
    context = generator.context(["anything", ""])
    assert context.dropped.all()
    with torch.no_grad():
        tokens, valid = generator.trunk.context(context)
    assert tokens.shape == (2, 1, 96)
    assert valid is None
    assert torch.equal(tokens[0], tokens[1])


def test_prompts_are_refused_where_there_is_nothing_to_ask_for_and_needed_elsewhere(photos, tmp_path, tiny_run, capsys):
    run = tmp_path / "run"
    settings = ["condition.kind=none", f"streams.image.data={{kind: folder, path: {photos}}}", ALONE]
    assert train(run, *settings, "training.steps=1") == 0
    assert main(["generate", "image", "--run", str(run), "--prompt", "a cat"]) == 2
    assert "condition.kind 'none'; ask with --number N alone" in capsys.readouterr().err
    assert main(["generate", "image", "--run", str(tiny_run)]) == 2
    assert "condition.kind 'text'; ask with --prompt" in capsys.readouterr().err


def test_missing_captions_are_refused_with_the_way_out(photos, tmp_path, capsys):
    assert train(tmp_path / "run", f"streams.image.data={{kind: folder, path: {photos}}}") == 2
    assert "`condition.kind: none`" in capsys.readouterr().err
    assert train(tmp_path / "run", "condition.kind=nome") == 2
    assert "'nome' is not one of text, label, none. Did you mean: 'none'?" in capsys.readouterr().err


def test_an_unconditional_run_resumes_to_the_same_bits(photos, tmp_path):
    from tests.tools.tiny import result

    settings = ["condition.kind=none", f"streams.image.data={{kind: folder, path: {photos}}}", ALONE]
    for run, steps in (("whole", [4]), ("halves", [2, 4])):
        for last in steps:
            assert train(tmp_path / run, *settings, f"training.steps={last}") == 0
    assert result(tmp_path / "whole") == result(tmp_path / "halves")
