"""A frozen text encoder from the command line: train, resume, generate and evaluate, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders are read with transformers")

from configs.runs import load_run
from core.errors import ConfigError
from core.sampling.sampler import SamplerConfig
from core.training.checkpoint import CheckpointStore
from modalities.generation import generate
from tests.modalities.conditioning.small import WIDTH, save_text_encoder
from tests.tools.tiny import result, train
from tools.cli import main

IMAGES = "streams={video: null, audio: null}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_text_encoder(tmp_path_factory.mktemp("text") / "t5")


def settings(folder: Path, **changes) -> str:
    values = {"kind": "t5", "path": folder, "max_tokens": 8, "width": WIDTH, "precision": "fp32"} | changes
    return f"condition.encoder={{{', '.join(f'{name}: {value}' for name, value in values.items())}}}"


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    val = "streams.image.val={size: 8, count: 12, seed: 1}"
    assert train(path, settings(folder), IMAGES, val, "training.steps=4") == 0
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(folder, run, workers, tmp_path):
    val = "streams.image.val={size: 8, count: 12, seed: 1}"
    for steps in (2, 4):
        own = (settings(folder), IMAGES, val, f"training.steps={steps}", f"training.workers={workers}")
        assert train(tmp_path, *own) == 0
    assert result(tmp_path) == result(run)


def test_the_joint_model_generates_every_modality(folder, tmp_path):
    assert train(tmp_path, settings(folder, precision="bf16"), "seed=17", "training.steps=3") == 0
    for modality in ("image", "video", "audio"):
        own = ["--prompt", "a red circle", "--steps", "2", "--cfg-scale", "2"]
        assert main(["generate", modality, "--run", str(tmp_path), *own]) == 0
        assert list((tmp_path / "generated" / modality).glob("0000-a-red-circle.*"))


def test_prompts_act_and_a_batch_of_any_size_gives_the_same_bits(run):
    loaded, plan = load_run(run), SamplerConfig(steps=2, cfg_scale=2.0)

    def made(prompts: list[str], batch: int) -> torch.Tensor:
        return torch.stack(
            [media["image"] for media in generate(loaded.generator, "image", prompts, plan, seed=0, batch_size=batch)]
        )

    prompts = ["a red circle", "", "the blue square", "a red circle"]
    four = made(prompts, 4)
    assert torch.equal(made(prompts, 1), four)
    assert not torch.equal(made(["a cat", *prompts[1:]], 4)[0], four[0])


def test_evaluation_encodes_the_captions(run, capsys):
    measures = "streams.image.evaluation={measures: [velocity], val: 6, batch: 4, timesteps: [0.5]}"
    assert main(["evaluate", "--run", str(run), measures]) == 0
    assert "velocity" in capsys.readouterr().out


def test_checkpoints_hold_no_encoder_and_are_read_without_it(run, folder, tmp_path):
    store = CheckpointStore(run / "checkpoints")
    names = store.load_weights(store.latest(), "teacher")
    assert names["context.reader.linear.weight"].shape[1] == WIDTH
    assert not any("encoder" in name or "shared" in name for name in names)

    moved = tmp_path / "t5"
    shutil.copytree(folder, moved)
    assert train(tmp_path / "run", settings(moved), IMAGES, "training.steps=1") == 0
    shutil.rmtree(moved)
    loaded = load_run(tmp_path / "run")  # the trunk needs no encoder
    with pytest.raises(ConfigError, match=r"condition\.encoder\.path: '.*t5' cannot be read: there is no such folder"):
        next(generate(loaded.generator, "image", ["a cat"], SamplerConfig(steps=1), seed=0))
    loaded = load_run(tmp_path / "run", text_encoder=str(folder))
    made = next(generate(loaded.generator, "image", ["a cat"], SamplerConfig(steps=1), seed=0))
    assert made["image"].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "t6"}, "condition.encoder.kind: 't6' is not one of t5"),
        ({"width": 32}, "condition.encoder.width: 32, but the features of"),
        ({"layers": [4]}, "condition.encoder.layers: 4 is beyond the 3 blocks"),
        ({"layers": [1, 0]}, "condition.encoder.layers: [1, 0] must be different blocks"),
        ({"path": "nowhere"}, "condition.encoder.path: 'nowhere' cannot be read: there is no such folder"),
        ({"kind": "clip"}, "Set condition.encoder.kind: t5"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_step(folder, tmp_path, capsys, changes, line):
    assert train(tmp_path / "run", settings(folder, **changes), IMAGES, "training.steps=1") != 0
    said = capsys.readouterr()
    assert line in said.out + said.err
    assert not (tmp_path / "run").exists()


def test_labels_take_no_encoder(folder, tmp_path, capsys):
    assert train(tmp_path / "run", settings(folder), IMAGES, "condition.kind=label") != 0
    said = capsys.readouterr()
    assert "condition.encoder: unknown key of kind 'label'" in said.out + said.err
    assert "It belongs to kind text." in said.out + said.err
