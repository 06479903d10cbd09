"""`selfflow evaluate` on sample files: those of the ADM evaluator, plain images, and statistics alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from core.evaluation.inception_score import inception_score_of_runs
from modalities.evaluation.networks.base import Features
from modalities.evaluation.networks.inception import Inception
from tests.modalities.evaluation.networks.test_inception import weights
from tests.modalities.making import image_bytes
from tools.cli import main


def reference(path: Path, network, images: np.ndarray) -> dict[str, np.ndarray]:
    """A file with numpy's statistics, as ADM computes those it publishes."""
    features = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    found = {}
    for short, rows in (("", features.pool), ("_s", features.spatial)):
        found[f"mu{short}"] = rows.double().numpy().mean(axis=0)
        found[f"sigma{short}"] = np.cov(rows.double().numpy(), rowvar=False)
    np.savez(path, arr_0=images, **found)
    return found


def measure_files(tmp_path: Path, inception: Path | str) -> dict:
    files = ["--samples", str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "reference.npz")]
    assert main(["evaluate", *files, "--inception", str(inception), "--out", str(tmp_path), "--device", "cpu"]) == 0
    return json.loads((tmp_path / "samples.json").read_text())


class Colors(torch.nn.Module):
    """In place of Inception, whose 2048 features take half a minute of linear algebra."""

    name, kind, distance = "mean colors", "inception", "FID"

    def __init__(self, path: str):
        super().__init__()

    def forward(self, media):
        pool = media.mean((2, 3))
        return Features(pool, media[:, :2].mean((2, 3)), pool)


@pytest.mark.parametrize("shift", [0, 20])
def test_a_sample_file_against_a_reference_with_a_known_answer(shift, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("modalities.evaluation.sample_files.Inception", Colors)
    shapes = {"mu": (3,), "sigma": (3, 3), "mu_s": (2,), "sigma_s": (2, 2)}
    monkeypatch.setattr("modalities.evaluation.adm.STATISTICS", shapes)
    images = np.random.default_rng(0).integers(0, 230, (70, 8, 8, 3), dtype=np.uint8)
    reference(tmp_path / "reference.npz", Colors(""), images)
    np.savez(tmp_path / "samples.npz", images + np.uint8(shift))
    result = measure_files(tmp_path, "any")
    moved = (shift / 127.5) ** 2  # of every channel's mean; the covariance stays
    assert result["values"]["FID"] == pytest.approx(3 * moved, rel=1e-4, abs=1e-9)
    assert result["values"]["sFID"] == pytest.approx(2 * moved, rel=1e-4, abs=1e-9)
    for name in ("precision", "recall"):
        assert result["values"][name] == 1 if shift == 0 else result["values"][name] < 0.5
    assert 1 <= result["values"]["IS"] <= 3
    assert result["warnings"] == []
    assert "sFID" in capsys.readouterr().out


@pytest.fixture
def colors(monkeypatch) -> None:
    monkeypatch.setattr("modalities.evaluation.sample_files.Inception", Colors)
    shapes = {"mu": (3,), "sigma": (3, 3), "mu_s": (2,), "sigma_s": (2, 2)}
    monkeypatch.setattr("modalities.evaluation.adm.STATISTICS", shapes)


def compare_files(tmp_path: Path, samples: Path, reference: Path) -> dict:
    files = ["--samples", str(samples), "--reference", str(reference), "--inception", "any", "--device", "cpu"]
    assert main(["evaluate", *files, "--out", str(tmp_path / "results")]) == 0
    return json.loads((tmp_path / "results" / f"{samples.stem}.json").read_text())


def noise(count: int, seed: int = 0, shift: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 230, (count, 8, 8, 3), dtype=np.uint8) + np.uint8(shift)


def test_a_reference_of_mu_and_sigma_alone_gives_fid_alone(colors, tmp_path, capsys):
    found = reference(tmp_path / "whole.npz", Colors(""), noise(70))
    np.savez(tmp_path / "other.npz", mu=found["mu"], sigma=found["sigma"])
    np.savez(tmp_path / "samples.npz", noise(70, shift=20))
    result = compare_files(tmp_path, tmp_path / "samples.npz", tmp_path / "other.npz")
    assert result["values"]["FID"] == pytest.approx(3 * (20 / 127.5) ** 2, rel=1e-4)
    assert set(result["values"]) == {"FID", "IS"}
    assert result["failed"] == []
    said = capsys.readouterr().err
    for line in ("sFID is left out: the reference holds mu and sigma", "precision, recall is left out: the reference"):
        assert line in said
        assert any(warning.startswith(line) for warning in result["warnings"])


@pytest.mark.parametrize("kind", ["npz", "folder", "parquet"])
def test_plain_images_are_a_reference_and_samples_too(kind, colors, tmp_path):
    images, samples = noise(40), noise(30, seed=1)
    whole = reference(tmp_path / "whole.npz", Colors(""), images)
    np.savez(tmp_path / "samples.npz", samples)
    expected = compare_files(tmp_path, tmp_path / "samples.npz", tmp_path / "whole.npz")
    assert set(whole) == {"mu", "sigma", "mu_s", "sigma_s"}
    plain = {"npz": tmp_path / "plain.npz", "folder": tmp_path / "plain", "parquet": tmp_path / "plain.parquet"}[kind]
    if kind == "npz":
        np.savez(plain, images)
    elif kind == "folder":
        for number, pixels in enumerate(images):
            path = plain / f"{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(pixels))
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        pyarrow = pytest.importorskip("pyarrow")
        rows = [{"bytes": image_bytes(pixels), "path": None} for pixels in images]
        parquet.write_table(pyarrow.table({"img": rows, "label": [0] * 40}), plain)
    result = compare_files(tmp_path, tmp_path / "samples.npz", plain)
    assert result["values"] == pytest.approx(expected["values"], rel=1e-6)
    assert result["warnings"] == []
    other_way = compare_files(tmp_path, plain, tmp_path / "samples.npz")
    assert other_way["values"]["FID"] == pytest.approx(expected["values"]["FID"], rel=1e-5)


def test_images_that_cannot_be_read_and_other_sizes_are_said(colors, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for number, pixels in enumerate(noise(20)):
        (folder / f"{number:02}.png").write_bytes(image_bytes(np.tile(pixels, (1 + number % 2, 1, 1))))
    (folder / "05.png").write_bytes(b"no image")
    np.savez(tmp_path / "samples.npz", noise(20, seed=1))
    warnings = compare_files(tmp_path, tmp_path / "samples.npz", folder)["warnings"]
    assert "1 of 20 images cannot be used; the first: " in warnings[0]
    assert warnings[1].startswith("samples of 8 x 8 pixels are compared with images of 8 x 8 and 16 x 8 pixels: ")


def test_few_samples_are_measured_as_far_as_they_go(colors, tmp_path):
    reference(tmp_path / "whole.npz", Colors(""), noise(40))
    for count, names in ((1, {"IS"}), (3, {"IS", "FID", "sFID"}), (4, {"IS", "FID", "sFID", "precision", "recall"})):
        np.savez(tmp_path / "samples.npz", noise(count, seed=1))
        assert set(compare_files(tmp_path, tmp_path / "samples.npz", tmp_path / "whole.npz")["values"]) == names


@pytest.mark.parametrize("count", [1500, 2500])
def test_the_inception_score_of_a_sample_file_is_adms(count, colors, tmp_path, monkeypatch):
    """Runs of 1,000 in place of 5,000: the short last one counts as much as the others."""
    monkeypatch.setattr(inception_score_of_runs, "__defaults__", (1000,))
    np.savez(tmp_path / "samples.npz", noise(count))
    reference(tmp_path / "whole.npz", Colors(""), noise(40))
    p = Colors("")(torch.from_numpy(noise(count)).permute(0, 3, 1, 2).float() / 127.5 - 1).logits.softmax(1).double()
    scores = []
    for start in range(0, count, 1000):
        run = p[start : start + 1000]
        scores.append(float((run * (run.log() - run.mean(0).log())).sum(1).mean().exp()))
    found = compare_files(tmp_path, tmp_path / "samples.npz", tmp_path / "whole.npz")["values"]["IS"]
    assert found == pytest.approx(sum(scores) / len(scores), rel=1e-7)


@pytest.mark.slow
def test_inception_itself_on_a_sample_file_of_the_references_own_images(tmp_path):
    torch.save(weights(), tmp_path / "random.pth")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    found = reference(tmp_path / "reference.npz", Inception(str(tmp_path / "random.pth")), images)
    np.savez(tmp_path / "samples.npz", images)
    result = measure_files(tmp_path, tmp_path / "random.pth")
    for name, sigma in (("FID", found["sigma"]), ("sFID", found["sigma_s"])):
        assert result["values"][name] == pytest.approx(0, abs=1e-5 * np.trace(sigma))
    assert result["values"]["precision"] == result["values"]["recall"] == 1
    assert any("FID: 6 samples for 2048 features" in line for line in result["warnings"])


def test_sample_files_need_all_three_files(tmp_path, capsys):
    assert main(["evaluate", "--samples", str(tmp_path / "a.npz")]) == 2
    assert "--reference: needed" in capsys.readouterr().err
    assert main(["evaluate", "--reference", str(tmp_path / "a.npz")]) == 2
    assert "--samples: needed" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "--run: names the run folder" in capsys.readouterr().err
    files = ["--samples", str(tmp_path / "a.npz"), "--reference", str(tmp_path / "b.npz"), "--inception", "weights"]
    assert main(["evaluate", *files]) == 2
    assert "b.npz: not an .npz file" in capsys.readouterr().err
