"""Every method on every trunk from the command line: train, resume, generate; resuming is exact where it is hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="REPA's encoders and RAE need transformers")
pytest.importorskip("diffusers", reason="RAE needs diffusers")

from configs.methods import METHODS
from core.training.records import read_lines
from modalities.media.audio import probe_audio, read_audio
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from tests.thinned import slow, thinned
from tests.tools.small_weights import ENCODERS, encoder_settings, save_encoders, save_rae
from tests.tools.tiny import CONFIG, result, train
from tools.cli import main


@dataclass(frozen=True)
class Case:
    """A configuration; what is asked of each of its modalities, and how large the answer is."""

    config: Path
    requests: dict[str, tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]


CLASS = {"image": ("--class", "red circle")}
CASES = {
    "joint MMDiT": Case(
        CONFIG,
        {
            "image": ("--prompt", "a red circle"),
            "video": ("--prompt", "a blue cross moving left"),
            "audio": ("--prompt", "notes C E G"),
        },
        {"image": (8, 8, 3), "video": (3, 256, 256, 3), "audio": (1200, 1)},  # small videos are written enlarged
    ),
    "SiT": Case(CONFIG.with_name("tiny_sit.yaml"), CLASS, {"image": (8, 8, 3)}),
    "DDT on RAE": Case(CONFIG.with_name("tiny_rae.yaml"), CLASS, {"image": (256, 256, 3)}),
}
# Terms of the loss besides flow matching, and their weights at step 0; None: one for each modality's encoder.
TERMS = {
    "flow_matching": {},
    "repa": {None: 0.5},
    "sra": {"align/teacher": 0.2},
    "layersync": {"align/layer_sync": 0.2},
    "dispersive": {"align/dispersive": 0.25},
    "self_flow": {"align/teacher": 0.8},
    "self_flow_as": {"align/teacher": 0.5},
}
EVERY_MODALITY = "seed=17"  # its first three steps are of image, video, audio


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Folder of the encoders, by modality, and of RAE."""
    folder = tmp_path_factory.mktemp("weights")
    save_encoders(folder)
    save_rae(folder / "rae")
    return folder


def settings(case: Case, method: str, weights: Path) -> list[str]:
    """The method on the case, with the weights that it needs."""
    own = [EVERY_MODALITY, f"method={method}"]
    if method == "repa":
        own += encoder_settings(weights, *case.requests)
        if len(case.requests) > 1:  # three of REPA's own projectors would be a hundred times the size of the trunk
            own.append("alignment.external.projector=simple")
    if method == "self_flow_as" and "video" in case.requests:
        own.append("streams.video.modes={first_frame: 0}")
    if case is CASES["DDT on RAE"]:
        own.append(f"streams.image.media.autoencoder.path={weights / 'rae'}")
    return own


def check_losses(run: Path, terms: dict[str | None, float]) -> list[dict]:
    """The metrics of a run, whose loss must be flow matching plus exactly these terms with their weights."""
    entries = read_lines(run / "metrics.jsonl")
    for entry in entries:
        modality = entry["stream"]
        named = {name or f"align/{modality}_{ENCODERS[modality]}": weight for name, weight in terms.items()}
        seen = {name for name in entry if name.startswith("align/")}
        assert seen == set(named)
        expected = entry[f"flow/{modality}"] + sum(weight * entry[name] for name, weight in named.items())
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
        assert all(math.isfinite(value) for name, value in entry.items() if name != "stream")
        assert entry["grad_norm"] > 0
    return entries


def check_file(modality: str, folder: Path, shape: tuple[int, ...]) -> None:
    """One media file of this size lies in the folder, with its description, and it is not of one color or silent."""
    suffix = {"image": ".png", "video": ".mp4", "audio": ".wav"}[modality]
    (path,) = folder.glob(f"*{suffix}")
    assert path.with_suffix(".json").is_file()
    if modality == "image":
        media = read_image(path, str(path))
    elif modality == "video":
        index = index_video(path, str(path))
        media = np.stack(read_frames(path, str(path), index, np.arange(len(index.times))))
    else:
        media = read_audio(path, str(path), 0, probe_audio(path, str(path)).samples)
    assert media.shape == shape
    assert media.std() > 0


@pytest.mark.parametrize(("method", "name"), thinned(product(METHODS, CASES), 4))
def test_train_resume_and_generate(method, name, weights, tmp_path):
    case = CASES[name]
    own = settings(case, method, weights)
    assert train(tmp_path, *own, "training.steps=2", config=case.config) == 0
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(tmp_path, *own, "training.steps=3", config=case.config) == 0
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)
    entries = check_losses(tmp_path, TERMS[method])
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert {entry["stream"] for entry in entries} == set(case.requests)
    for modality, request in case.requests.items():
        assert main(["generate", modality, "--run", str(tmp_path), *request, "--steps", "2"]) == 0
        check_file(modality, tmp_path / "generated" / modality, case.shapes[modality])


@pytest.mark.parametrize(
    ("method", "section", "terms"),
    [
        ("self_flow", "alignment.external={projector: simple}", {"align/teacher": 0.8, None: 0.5}),
        ("self_flow", "alignment.dispersive={}", {"align/teacher": 0.8, "align/dispersive": 0.25}),
        ("repa", "alignment={layer_sync: {}, external: {projector: simple}}", {None: 0.5, "align/layer_sync": 0.2}),
    ],
)
def test_terms_add_up(method, section, terms, weights, tmp_path):
    encoders = encoder_settings(weights, "image", "video", "audio") if None in terms else []
    own = [EVERY_MODALITY, f"method={method}", section, *encoders]
    assert train(tmp_path, *own, "training.steps=3") == 0
    assert {entry["stream"] for entry in check_losses(tmp_path, terms)} == {"image", "video", "audio"}


@pytest.mark.parametrize("method", [slow("self_flow_as"), "repa"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(method, weights, tmp_path):
    """A teacher at an earlier level and separate groups; frozen encoders. With and without a loader's worker."""
    own = settings(CASES["joint MMDiT"], method, weights)
    found = []
    for workers in (0, 1):
        straight, resumed = (tmp_path / f"{kind}-{workers}" for kind in ("straight", "resumed"))
        assert train(straight, *own, "training.steps=4", f"training.workers={workers}") == 0
        for steps in (2, 4):
            assert train(resumed, *own, f"training.steps={steps}", f"training.workers={workers}") == 0
        found += [result(straight), result(resumed)]
    assert found[0]["step"] == 4
    assert all(other == found[0] for other in found[1:])


def test_separation_and_encoders_change_the_weights(weights, tmp_path):
    """The comparison of bits above would notice."""
    own = settings(CASES["joint MMDiT"], "self_flow_as", weights)
    found = []
    for index, change in enumerate(([], ["noising.attention_separation=false"], ["noising.teacher=min"])):
        assert train(tmp_path / str(index), *own, *change, "training.steps=1") == 0
        found.append(result(tmp_path / str(index))["student"])
    assert len(set(found)) == 3
