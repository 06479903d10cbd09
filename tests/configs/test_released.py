"""selfflow export --kind run: a folder to pass on gives the samples of its run, and says what it does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.released import ABOUT, WEIGHTS_FILE
from configs.runs import aligned_pair, load_run
from tests.tools.tiny import STEPS, train
from tools.cli import main


def export(run: Path, folder: Path, *more: str) -> int:
    return main(["export", "--run", str(run), "--to", str(folder), "--kind", "run", *more])


def generate(folder: Path, out: Path, *more: str) -> int:
    asked = ["--prompt", "a red circle", "--number", "2", "--steps", "2", "--out", str(out), "--quiet"]
    return main(["generate", "image", "--run", str(folder), *asked, *more])


def images(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def passed_on(tiny_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("passed_on") / "run"
    assert export(tiny_run, folder) == 0
    return folder


def test_it_generates_the_same_bytes(tiny_run, passed_on, tmp_path):
    assert generate(tiny_run, tmp_path / "run") == 0
    assert generate(passed_on, tmp_path / "passed_on") == 0
    made = images(tmp_path / "passed_on")
    assert len(made) == 3  # and their grid
    assert made == images(tmp_path / "run")


def test_it_is_evaluated_alike(tiny_run, passed_on, tmp_path):
    measured = []
    for folder in (tiny_run, passed_on):
        few = ["streams.image.evaluation={measures: [velocity], val: 8, timesteps: [0.5]}"]
        few += ["streams.image.val={size: 8, count: 20, seed: 1}"]
        out = tmp_path / folder.parent.name
        assert main(["evaluate", "--run", str(folder), "--stream", "image", "--out", str(out), "--quiet", *few]) == 0
        (result,) = out.glob("*.json")
        measured.append(json.loads(result.read_text())["values"])
    assert measured[0] == measured[1]


def test_what_is_in_it(tiny_run, passed_on):
    assert sorted(path.name for path in passed_on.iterdir()) == [ABOUT, WEIGHTS_FILE]
    assert str(tiny_run) not in (passed_on / ABOUT).read_text()
    assert not [name for name in load_file(passed_on / WEIGHTS_FILE) if name.startswith("projector")]
    assert aligned_pair(load_run(passed_on), "image") is None
    assert aligned_pair(load_run(tiny_run), "image") is not None


def test_in_half_the_precision(tiny_run, tmp_path):
    assert export(tiny_run, tmp_path / "half", "--type", "bf16") == 0
    whole, half = (load_run(folder).generator.trunk.state_dict() for folder in (tiny_run, tmp_path / "half"))
    stored = load_file(tmp_path / "half" / WEIGHTS_FILE)
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert all(torch.equal(value, whole[name].bfloat16().float()) for name, value in half.items())


@pytest.mark.slow
def test_an_adapter_is_merged(tmp_path):
    run, folder = tmp_path / "lora", tmp_path / "passed_on"
    assert train(run, "training.adapter={rank: 2}", "training.steps=1", "training.save_every=1") == 0
    assert export(run, folder) == 0
    assert generate(folder, tmp_path / "out") == 0
    assert load_run(folder).config.training.adapter is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--weights", "student"], f"holds the ema weights of step {STEPS} alone, not student"),
        (["--step", "3"], f"holds the ema weights of step {STEPS} alone, not step 3"),
        (["--ema-length", "0.1"], f"holds the ema weights of step {STEPS} alone, not EMA of length 0.1"),
    ],
)
def test_what_it_does_not_hold(passed_on, tmp_path, capsys, asked, said):
    assert generate(passed_on, tmp_path, *asked) == 2
    assert said in capsys.readouterr().err


def test_damaged_ones_are_refused(passed_on, tiny_run, tmp_path, capsys):
    assert export(tiny_run, passed_on) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err
    about = json.loads((passed_on / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(about))
    (tmp_path / WEIGHTS_FILE).write_bytes((passed_on / WEIGHTS_FILE).read_bytes()[:-1000])
    assert generate(tmp_path, tmp_path / "out") == 2
    assert "damaged or not a safetensors file" in capsys.readouterr().err
    (tmp_path / ABOUT).write_text(json.dumps({"step": 3}))
    assert generate(tmp_path, tmp_path / "out") == 2
    assert f"{tmp_path / ABOUT}: damaged, or of another version of this project ('weights')" in capsys.readouterr().err


@pytest.mark.slow
def test_training_starts_from_its_weights(passed_on, tmp_path):
    begun = ["--init-from", str(passed_on / WEIGHTS_FILE), "--init-fresh", "projector"]
    assert train(tmp_path / "on", *begun, "training.steps=1", "training.save_every=1") == 0
    assert generate(tmp_path / "on", tmp_path / "out") == 0
