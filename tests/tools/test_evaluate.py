"""selfflow evaluate from the command line: every measure of every modality, what is refused, and sample files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.runs import aligned_pair, load_run
from core.training.checkpoint import CheckpointStore
from tests.modalities.making import image_bytes
from tests.tools.tiny import CONFIG, STEPS, train
from tools.cli import main

MEDIA = {"image": "size: 8", "video": "size: 8, frames: 3", "audio": "seconds: 0.3"}
HELDOUT = [f"streams.{name}.val={{kind: synthetic, count: 40, seed: 9, {more}}}" for name, more in MEDIA.items()]
SIT = CONFIG.with_name("tiny_sit.yaml")


def few(*names: str) -> list[str]:
    wanted = ["val=20", "training=40", "generated=12", "classifier_steps=4", "timesteps=[0.3,0.8]"]
    return [f"streams.{name}.evaluation.{setting}" for name in names for setting in wanted]


FEW = few(*MEDIA)


def evaluate(run: Path, *options: str) -> int:
    return main(["evaluate", "--run", str(run), "--device", "cpu", *options])


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("step-*.json"))]
    return {result["stream"]: result for result in found}


@pytest.fixture(scope="module")
def sit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sit") / "run"
    assert train(folder, HELDOUT[0], config=SIT) == 0
    return folder


@pytest.fixture(scope="module")
def measured(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    assert evaluate(tiny_run, *HELDOUT, *FEW, "--out", str(out)) == 0
    return out


@pytest.mark.slow
def test_samples_of_several_devices_have_the_same_values(measured, tiny_run, tmp_path):
    assert evaluate(tiny_run, *HELDOUT, *FEW, "--stream", "image", "--devices", "2", "--out", str(tmp_path)) == 0
    assert results(tmp_path)["image"] == results(measured)["image"]


def test_all_measures_of_all_modalities(measured):
    found = results(measured)
    assert set(found) == set(MEDIA)
    for name, result in found.items():
        values = result["values"]
        assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())
        assert {"velocity/mean", "velocity/t=0.3", "probe/layer=3", "probe/best", "knn/best"} <= set(values)
        assert {"health/norm/layer=1", "health/align_cosine", "health/align_cosine_noisier"} <= set(values)
        assert {f"samples/classifier/{kind}" for kind in ("FD (small classifier)", "KID", "coverage")} <= set(values)
        assert not any("FID" in key or key.endswith("/IS") for key in values)
        assert (result["step"], result["method"], result["weights"]) == (STEPS, "self_flow", "ema")
        assert result["records"] == {
            "val": {"available": 40, "used": 20, "unusable": 0},
            "training": {"available": 60, "used": 60, "unusable": 0},
        }
        assert result["networks"]["classifier"].startswith(f"small classifier trained on synthetic {name} data")
        assert any("12 samples for 128 features" in line for line in result["warnings"])
        assert result["settings"]["measures"] is None
        assert result["measures"] == ["velocity", "probe", "knn", "health", "samples"]
    shares = {name: result["values"]["health/align_share_masked"] for name, result in found.items()}
    assert shares["video"] < 0.2 < shares["image"] < 0.35 < shares["audio"]  # mask ratios 0.1, 0.25, 0.5


def test_another_run_gives_the_same_numbers_its_own_classifier_included(measured, tiny_run, tmp_path):
    assert evaluate(tiny_run, "--stream", "image", HELDOUT[0], *few("image"), "--out", str(tmp_path)) == 0
    assert results(tmp_path)["image"] == results(measured)["image"]


@pytest.mark.parametrize("name", ["video", "audio"])
def test_another_batch_size_gives_the_same_numbers(name, measured, tiny_run, tmp_path):
    for file in measured.glob("classifier-*"):
        shutil.copy(file, tmp_path)
    options = ["--stream", name, *HELDOUT, *few(name), "--batch", "7", "--out", str(tmp_path)]
    assert evaluate(tiny_run, *options) == 0
    result, other = results(measured)[name], results(tmp_path)[name]
    assert other["settings"]["batch"] == 7
    assert other["values"] == pytest.approx(result["values"], rel=1e-4, abs=1e-5)
    assert other["warnings"] == result["warnings"]


def test_a_label_run_is_measured_from_its_own_settings_and_shown(sit_run, capsys):
    assert evaluate(sit_run, *few("image"), "streams.image.evaluation.conditions=random") == 0
    shown = capsys.readouterr().out
    result = results(sit_run / "evaluation")["image"]
    for expected in (
        "image, step 4, self_flow",
        "classifier: small classifier trained on synthetic image data, held-out accuracy",
        "val records: 20 of 40, 0 unusable",
        "warning: samples/classifier/FD (small classifier): 12 samples for 128 features",
        f"results in {sit_run / 'evaluation'}",
    ):
        assert expected in shown
    for name, value in result["values"].items():
        assert any(line.split()[-1] == f"{value:.5g}" for line in shown.splitlines() if line.strip().startswith(name))


def test_the_pair_is_the_student_beside_its_ema(sit_run):
    loaded = load_run(sit_run, device="cpu")
    pair, store = aligned_pair(loaded, "image"), CheckpointStore(sit_run / "checkpoints")
    for part, trunk in (("student", pair.student), ("teacher", loaded.generator.trunk)):
        stored = store.load_weights(4, part)
        assert all(torch.equal(value, stored[name]) for name, value in trunk.state_dict().items())
    assert (pair.student_layer, pair.teacher_layer, pair.mask_ratio) == (1, 2, 0.25)
    assert not torch.equal(store.load_weights(4, "student")["x_embedder.proj.weight"], stored["x_embedder.proj.weight"])


def test_a_run_without_alignment_has_no_pair(tmp_path):
    run = tmp_path / "run"
    assert train(run, "training.steps=1", "method=flow_matching", HELDOUT[0], config=SIT) == 0
    assert aligned_pair(load_run(run, device="cpu"), "image") is None
    assert evaluate(run, "streams.image.evaluation.measures=[health]", *few("image")) == 0
    values = results(run / "evaluation")["image"]["values"]
    assert "health/norm/layer=1" in values
    assert not any("align" in name for name in values)


def test_modalities_without_held_out_records_are_left_out_unless_asked_for(tiny_run, tmp_path, capsys):
    only = ["streams.image.evaluation.measures=[velocity]", *few("image"), "--out", str(tmp_path)]
    assert evaluate(tiny_run, HELDOUT[0], *only) == 0
    assert "audio is left out: streams.audio.val is not set" in capsys.readouterr().err
    assert set(results(tmp_path)) == {"image"}
    for asked in ([], ["--stream", "audio"]):
        assert evaluate(tiny_run, *asked) == 2
        assert ".val: not set; name records that were not trained on" in capsys.readouterr().err


def photos(folder: Path, count: int, start: int = 0, damaged: bool = False) -> str:
    """Images with captions beside them, all of one folder, so of no classes."""
    folder.mkdir()
    for index in range(start, start + count):
        pixels = np.full((8, 8, 3), 5 * index, dtype=np.uint8)
        (folder / f"{index}.png").write_bytes(image_bytes(pixels))
        (folder / f"{index}.txt").write_text(f"gray {index}")
    if damaged:
        (folder / "damaged.png").write_bytes(b"no image")
        (folder / "damaged.txt").write_text("damaged")
    return f"{{kind: folder, path: {folder}}}"


def test_data_without_classes_do_not_stop_the_other_modalities(tiny_run, tmp_path, capsys):
    val, data = photos(tmp_path / "val", 8, start=20, damaged=True), photos(tmp_path / "train", 9)
    own = [f"streams.image.val={val}", f"streams.image.data={data}", HELDOUT[2], *FEW]
    own.append("streams.audio.evaluation.measures=[knn]")
    assert evaluate(tiny_run, *own, "--out", str(tmp_path / "out")) == 0
    found = results(tmp_path / "out")
    assert found["image"]["measures"] == ["velocity", "health"]
    assert found["image"]["records"]["val"] == {"available": 9, "used": 8, "unusable": 1}
    warnings = found["image"]["warnings"]
    assert [line.split(":")[0] for line in warnings[:3]] == [f"{m} is left out" for m in ("probe", "knn", "samples")]
    assert "1 held-out records cannot be used; the first:" in warnings[3]
    assert "damaged.png" in warnings[3]
    assert found["audio"]["values"]["knn/best"] > 0
    named = "streams.image.evaluation.measures=[velocity,probe]"
    capsys.readouterr()
    assert evaluate(tiny_run, *own, named, "--out", str(tmp_path / "named")) == 2
    assert "measures: probe: needs classes, and the image data have one class" in capsys.readouterr().err
    assert not (tmp_path / "named").exists()  # refused before audio was measured


def test_three_held_out_records_are_said_at_the_start_and_the_rest_is_written(tiny_run, tmp_path, capsys):
    """Once everything was measured, and then nothing was written."""
    three = "streams.image.val={kind: synthetic, count: 3, seed: 9, size: 8}"
    assert evaluate(tiny_run, three, *few("image"), "--out", str(tmp_path)) == 0
    assert "image: samples is left out: 3 held-out records to compare; at least 6" in capsys.readouterr().err
    result = results(tmp_path)["image"]
    assert result["measures"] == ["velocity", "probe", "knn", "health"]
    assert {"velocity/mean", "probe/best", "knn/best", "health/align_cosine"} <= set(result["values"])
    assert result["failed"] == []
    assert result["warnings"][0].startswith("samples is left out: 3 held-out records")


def test_foreign_classes_are_said_at_the_start_and_the_rest_is_written(tiny_run, tmp_path, capsys):
    for number in range(8):
        photos(tmp_path / f"class-{number % 2}-{number}", 1, start=number)
    val = f"streams.image.val={{kind: folder, path: {tmp_path}}}"
    assert evaluate(tiny_run, val, *few("image"), "--out", str(tmp_path / "out")) == 0
    assert "image: knn is left out: the classes of the held-out records (class-0-0, " in capsys.readouterr().err
    result = results(tmp_path / "out")["image"]
    assert result["measures"] == ["velocity", "health", "samples"]
    assert "samples/classifier/KID" in result["values"]


def test_a_measure_that_fails_on_the_way_is_written_beside_the_others_with_status_1(
    tiny_run, tmp_path, capsys, monkeypatch
):
    def broken(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("modalities.evaluation.samples.generated", broken)
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), "--out", str(tmp_path)) == 1
    shown = capsys.readouterr()
    assert "warning: samples is left out: RuntimeError: CUDA out of memory" in shown.out
    assert "Traceback" not in shown.err
    result = results(tmp_path)["image"]
    assert result["failed"] == ["samples"]
    assert {"velocity/mean", "probe/best", "knn/best", "health/align_cosine"} <= set(result["values"])


def test_a_modality_that_cannot_be_measured_does_not_take_the_others_with_it(tiny_run, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no image")
        (folder / f"{number}.txt").write_text("text")
    bad = f"streams.image.val={{kind: folder, path: {folder}}}"
    only = [f"streams.{name}.evaluation.measures=[velocity]" for name in ("image", "audio")]
    assert evaluate(tiny_run, bad, HELDOUT[2], *only, *few("image", "audio"), "--out", str(tmp_path / "out")) == 1
    assert "image: not measured: image: nothing could be measured" in capsys.readouterr().err
    assert set(results(tmp_path / "out")) == {"audio"}
    assert evaluate(tiny_run, bad, only[0], *few("image"), "--out", str(tmp_path / "none")) == 2
    assert not list((tmp_path / "none").glob("*.json"))


def test_one_network_without_weights_is_left_out_and_the_other_measures(tiny_run, tmp_path, capsys):
    both = "streams.image.evaluation.networks=[{kind: inception, path: nowhere.pth}, {kind: classifier}]"
    only = "streams.image.evaluation.measures=[samples]"
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), both, only, "--out", str(tmp_path)) == 1
    assert "image: samples/inception is left out: feature network inception: no usable" in capsys.readouterr().err
    result = results(tmp_path)["image"]
    assert result["failed"] == ["samples/inception"]
    assert list(result["networks"]) == ["classifier"]
    assert "samples/classifier/KID" in result["values"]


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_an_output_place_that_cannot_be_used_is_refused_before_the_work(place, tiny_run, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), "--step", "77", "--out", str(tmp_path / place)) == 2
    assert f"--out: {tmp_path / 'taken'} is no folder" in capsys.readouterr().err  # and not: no checkpoint of step 77
    files = ["--samples", "a.npz", "--reference", "b.npz", "--inception", "c.pth"]
    assert main(["evaluate", *files, "--out", str(tmp_path / place)]) == 2
    assert f"--out: {tmp_path / 'taken'} is no folder" in capsys.readouterr().err
    assert evaluate(tiny_run, "--npz", str(tmp_path / "taken" / "samples")) == 2
    assert f"--npz: {tmp_path / 'taken'} is no folder" in capsys.readouterr().err
    (tmp_path / "folder.npz").mkdir(exist_ok=True)
    assert evaluate(tiny_run, "--npz", str(tmp_path / "folder")) == 2
    assert f"--npz: {tmp_path / 'folder.npz'} is a folder" in capsys.readouterr().err


def test_what_was_measured_before_ctrl_c_is_written(tiny_run, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("modalities.evaluation.samples.generated", interrupt)
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), "--out", str(tmp_path)) == 130
    result = results(tmp_path)["image"]
    assert {"velocity/mean", "probe/best", "knn/best", "health/align_cosine"} <= set(result["values"])
    assert result["failed"] == ["interrupted"]
    monkeypatch.setattr("modalities.evaluation.measure.velocity", interrupt)
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), "--out", str(tmp_path / "none")) == 130
    assert not list((tmp_path / "none").glob("*.json"))


def test_a_full_disk_at_the_end_is_one_line_below_the_numbers(tiny_run, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tools.evaluate.os.replace", full)
    only = "streams.image.evaluation.measures=[velocity]"
    assert evaluate(tiny_run, HELDOUT[0], *few("image"), only, "--out", str(tmp_path)) == 2
    shown = capsys.readouterr()
    assert "velocity/mean" in shown.out
    assert "-image.json: cannot be written: No space left on device" in shown.err
    assert "Traceback" not in shown.err


def test_records_that_were_trained_on_are_refused_before_anything_is_measured(tiny_run, tmp_path, capsys):
    same = "streams.audio.val={kind: synthetic, count: 60, seconds: 0.3}"
    assert evaluate(tiny_run, HELDOUT[0], same, *FEW, "--out", str(tmp_path / "out")) == 2
    message = capsys.readouterr().err
    assert "streams.audio.val: holds records that the run is trained on: they are the same 60" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["trunk.mmdit.width=64"], "trunk.mmdit.width: the run keeps what it was trained with; only streams.NAME."),
        (["streams.image.evaluatoin.seed=1"], "Did you mean: 'evaluation'?"),
        (["streams.image.media.patch=2"], "streams.image.media.patch: the run keeps what it was trained with"),
        (["streams.image.evaluation.measures=[fid]"], "'fid' is not one of velocity, probe, knn, health, samples"),
        (["--batch", "0"], "--batch: 0 must be at least 1"),
        (["--stream", "vidoe"], "--stream: 'vidoe' is not one of those that "),
        (["--stream", "vidoe"], "image, video, audio. Did you mean: 'video'?"),
        (["--step", "5"], "no checkpoint of step 5"),
        (["--samples", "x.npz", "--reference", "y.npz", "--inception", "z"], "--run: not together with --samples"),
        (["--npz", "x.npz"], "--npz: holds images of random classes, and this run is conditioned on text"),
        (
            [HELDOUT[0], "streams.image.evaluation.networks=[{kind: inception, path: nowhere.pth}]"],
            "feature network inception: no usable weights at 'nowhere.pth' (there is no such file)",
        ),
    ],
)
def test_a_wrong_request_is_one_clear_error(options, expected, tiny_run, tmp_path, capsys):
    assert evaluate(tiny_run, *options, "--out", str(tmp_path / "out")) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


def test_a_run_that_was_moved_is_still_measured(sit_run, tmp_path):
    shutil.copytree(sit_run, tmp_path / "moved", ignore=shutil.ignore_patterns("evaluation"))
    assert evaluate(tmp_path / "moved", "streams.image.evaluation.measures=[health]", *few("image")) == 0
    assert "health/align_cosine" in results(tmp_path / "moved" / "evaluation")["image"]["values"]


def test_sample_files_are_what_the_evaluator_of_adm_reads(sit_run, tmp_path, capsys):
    settings = ["streams.image.evaluation.generated=30", "--batch", "7"]
    assert evaluate(sit_run, "--npz", str(tmp_path / "samples"), *settings) == 0
    assert f"30 images in {tmp_path / 'samples.npz'}" in capsys.readouterr().out
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["arr_0"]
        images = file["arr_0"]
    assert (images.shape, images.dtype) == ((30, 8, 8, 3), np.uint8)
    assert len(np.unique(images.reshape(30, -1), axis=0)) > 1
    assert evaluate(sit_run, "--npz", str(tmp_path / "again.npz"), settings[0]) == 0
    assert np.array_equal(np.load(tmp_path / "again.npz")["arr_0"], images)
