"""selfflow encode, and training on what it wrote: the same numbers as from the media, without media or autoencoder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
pytest.importorskip("diffusers", reason="the autoencoders with weights need diffusers")

import modalities.image
from configs.assembly import Assembly
from configs.load import load_config
from core.errors import DataError
from core.training.loader import Microbatch
from core.training.records import read_lines
from modalities.data.batches import RawBatch
from tests.autoencoders.small import save
from tests.modalities.data.sets import flip
from tests.modalities.latents.jobs import content
from tests.modalities.making import image_bytes
from tests.tools.tiny import published, result, train
from tools.cli import main

COUNT = 20
CONFIG = """
method: self_flow
seed: 3
streams:
  image:
    batch: 4
    data: {kind: folder, path: photos}
    media: {size: [32], autoencoder: {kind: sd_vae, path: vae}}
    sampling: {steps: 2}
    evaluation: {val: 8, training: 8, batch: 4, timesteps: [0.5], generated: 6}
condition: {text: {vocabulary: 64, max_words: 6, rows_per_word: 4}}
trunk: {mmdit: {size: tiny, width: 32, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}}
training: {steps: 3, save_every: 3, device: cpu, ema: {decay: 0.1}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos of which one is damaged, a small SD-VAE, a configuration, and the photos encoded with both."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "config.yaml").write_text(CONFIG)
    save("sd_vae", folder / "vae")
    for number in range(COUNT):
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)))
        path.with_suffix(".txt").write_text(f"photo {number}\nlonger caption of {number}")
    (folder / "photos" / "cat" / "10.png").write_bytes(b"")
    assert encode(folder, folder / "latents", "--dtype", "float32") == 0
    return folder


def encode(place: Path, out: Path, *options: str) -> int:
    return main(["encode", str(place / "config.yaml"), "--out", str(out), "--workers", "0", "--chunk", "8", *options])


def latents(path: Path) -> str:
    return f"streams.image.data={{kind: latents, path: {path / 'image'}}}"


def completed(place: Path, key: str, *overrides: str) -> tuple[RawBatch, Microbatch]:
    """One record as training sees it in epoch 0: from the workers, and completed as on the device."""
    assembly = Assembly(load_config(place / "config.yaml", list(overrides)), place)
    ((name, stream),) = assembly.streams.items()
    records = (read(stream.source, index) for index in range(len(stream.source)))
    record = next(record for record in records if record is not None and record.key == key)
    raw = assembly.dataset.collate(name, [assembly.dataset.draw(name, record, 0)], ())
    return raw, assembly.preprocess(raw)


def read(source, index: int):
    try:
        return source.read(index)
    except DataError:
        return None


def test_the_manifest_says_what_was_made(place):
    manifest = json.loads((place / "latents" / "image" / "manifest.json").read_text())
    assert (manifest["records"], manifest["samples"], manifest["bad"]) == (COUNT, COUNT - 1, 1)
    assert (manifest["stream"], manifest["dtype"], manifest["labels"]) == ("image", "float32", ["cat", "dog"])
    assert list(manifest["parts"]) == ["image"]
    part = manifest["parts"]["image"]
    assert (part["modality"], part["grid"], part["channels"], part["deviation"]) == ("image", [1, 2, 2], 16, True)
    assert not part["normalization"]["measured"]
    assert part["autoencoder"]["kind"] == "sd_vae"
    assert len(part["autoencoder"]["digest"]) > 8
    assert part["media"]["crop"] == "center"
    (bad,) = read_lines(place / "latents" / "image" / "quarantine.jsonl")
    assert "10.png: the file is empty" in bad["reason"]


@pytest.mark.parametrize("key", ["cat/00.png", "dog/13.png"])
def test_training_sees_the_same_as_from_the_media(key, place):
    """With the same crops and float32 storage, to the bit: latents with their posterior's noise, and all else."""
    (_, media), (raw, stored) = completed(place, key), completed(place, key, latents(place / "latents"))
    assert torch.equal(media.batch.segments[0].x0, stored.batch.segments[0].x0)
    assert float(stored.batch.segments[0].x0.std()) > 0
    assert torch.equal(media.batch.context.tokens, stored.batch.context.tokens)
    assert torch.equal(media.drawn.noise[0], stored.drawn.noise[0])
    assert torch.equal(media.drawn.student.values, stored.drawn.student.values)
    assert (raw.parts[0].media, raw.parts[0].posterior) == (None, None)


def test_half_precision_moves_the_latents_by_its_rounding(place, tmp_path):
    assert encode(place, tmp_path) == 0
    key = "cat/00.png"
    exact, rounded = (completed(place, key, *data)[1] for data in ((), (latents(tmp_path),)))
    torch.testing.assert_close(rounded.batch.segments[0].x0, exact.batch.segments[0].x0, rtol=2e-3, atol=2e-3)
    assert not torch.equal(rounded.batch.segments[0].x0, exact.batch.segments[0].x0)


def test_killed_from_outside_it_goes_on_to_the_same_bytes(place, tmp_path):
    child = os.fork()
    if child == 0:
        try:
            encode(place, tmp_path / "cut", "--dtype", "float32", "--chunk", "4")
        finally:
            os._exit(70)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut").glob("*/chunk-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 70)
    for name in ("cut", "whole"):
        assert encode(place, tmp_path / name, "--dtype", "float32", "--chunk", "4") == 0
    assert content(tmp_path / "cut" / "image") == content(tmp_path / "whole" / "image")


@pytest.fixture(scope="module")
def run(place, tmp_path_factory) -> Path:
    """Three steps on latents, on a machine that has no weights and no media."""
    machine = tmp_path_factory.mktemp("machine")
    shutil.copy(place / "config.yaml", machine)
    shutil.copytree(place / "latents", machine / "latents")
    assert train(machine / "run", latents(Path("latents")), config=machine / "config.yaml") == 0
    return machine / "run"


def test_training_needs_neither_media_nor_weights(run):
    assert published(run) == [3]
    assert [entry["stream"] for entry in read_lines(run / "metrics.jsonl")] == ["image"] * 3
    assert read_lines(run / "quarantine.jsonl") == []


def test_workers_change_nothing(run, tmp_path):
    settings = (latents(run.parent / "latents"), "training.workers=2")
    assert train(tmp_path / "run", *settings, config=run.parent / "config.yaml") == 0
    assert result(tmp_path / "run") == result(run)


def test_a_run_goes_on_and_other_data_are_refused(run, place, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run.parent / "latents", tmp_path / "latents")
    shutil.copy(run.parent / "config.yaml", tmp_path)
    here, more = latents(Path("latents")), "training.steps=5"
    assert train(tmp_path / "run", here, more, config=tmp_path / "config.yaml") == 0
    assert published(tmp_path / "run")[-1] == 5
    shutil.rmtree(tmp_path / "latents")
    assert encode(place, tmp_path / "latents") == 0  # half precision: other latents
    assert train(tmp_path / "run", here, "training.steps=6", config=tmp_path / "config.yaml") == 2
    assert "data of image" in capsys.readouterr().err


@pytest.fixture
def weights(run, place):
    """The autoencoder's folder on the machine of the run, and a function that puts (other) weights there."""
    folder = run.parent / "vae"

    def put(other: bool = False) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "vae", folder)
        if other:
            (path,) = folder.glob("*.safetensors")
            tensors = load_file(path)
            tensors["decoder.conv_out.bias"] += 1
            save_file(tensors, path, metadata={"format": "pt"})

    yield put
    shutil.rmtree(folder, ignore_errors=True)


def test_generation_needs_the_weights_and_refuses_others(run, weights, tmp_path, capsys):
    command = ["generate", "image", "--run", str(run), "--prompt", "photo", "--device", "cpu", "--number", "1"]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "streams.image.media.autoencoder.path" in capsys.readouterr().err
    weights()
    assert main([*command, "--out", str(tmp_path / "made")]) == 0
    assert len(list((tmp_path / "made").glob("*.png"))) == 1
    weights(other=True)
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "others")]) == 2
    assert "are not those that the latents were encoded with" in capsys.readouterr().err


def test_training_refuses_latents_of_other_weights_where_it_can_tell(run, weights, tmp_path, capsys):
    weights(other=True)
    assert train(tmp_path / "run", latents(run.parent / "latents"), config=run.parent / "config.yaml") == 2
    error = capsys.readouterr().err
    assert "streams.image.media.autoencoder.path: the weights at" in error
    assert "are not those of the latents" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (
            "streams.image.media={size: [32], autoencoder: {kind: flux2, path: x}}",
            "streams.image.media.autoencoder.kind: 'flux2', and the latents are of 'sd_vae'",
        ),
        (
            "streams.image.media.size=[64]",
            "streams.image.media: makes 1 x 4 x 4 tokens (t, h, w) of 16 channels, and the latents are 1 x 2 x 2",
        ),
        (
            "streams.image.media.patch=1",
            "of 4 channels, and the latents are 1 x 2 x 2 tokens (t, h, w) of 16 channels",
        ),
        (
            "method=repa streams.image.encoders.dinov2={kind: dinov2, path: x}",
            "streams.image.encoders: dinov2 look at media, and data of stored latents hold none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(override, reason, run, tmp_path, capsys):
    overrides = override.split(" ", 1) if override.startswith("method") else [override]
    data = latents(run.parent / "latents")
    assert train(tmp_path / "run", data, *overrides, config=run.parent / "config.yaml") == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_held_out_latents_are_evaluated_without_media(run, place, tmp_path, capsys):
    assert encode(place, tmp_path, "seed=9", "streams.image.data.path=photos/dog") == 0
    out = tmp_path / "results"
    held_out = f"streams.image.val={{kind: latents, path: {tmp_path / 'image'}}}"
    command = ["evaluate", "--run", str(run), "--device", "cpu", "--out", str(out), held_out]
    assert main(command) == 2  # the photos that it was trained on
    assert "holds records that the run is trained on" in capsys.readouterr().err
    for path in (place / "photos" / "dog").glob("*.png"):
        (place / "new" / "dog").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / "new" / "dog")
        shutil.copy(path.with_suffix(".txt"), place / "new" / "dog")
    assert encode(place, tmp_path / "new", "streams.image.data.path=new") == 0
    command[-1] = f"streams.image.val={{kind: latents, path: {tmp_path / 'new' / 'image'}}}"
    assert main(command) == 0
    (found,) = out.glob("*.json")
    values = json.loads(found.read_text())["values"]
    assert values["velocity/mean"] > 0
    assert not any(name.startswith("samples/") for name in values)
    capsys.readouterr()
    assert main([*command, "streams.image.evaluation.measures=[samples]"]) == 2
    assert "feature networks look at media, and streams.image.val and streams.image.data hold latents" in (
        capsys.readouterr().err
    )


def test_settings_of_the_command_line_are_refused_by_name(place, tmp_path, capsys):
    for option, reason in (
        (["--shard", "3/2"], "--shard: '3/2' must be I/N"),
        (["--views", "0"], "--views: 0 must be at least 1"),
        (["--stream", "audio"], "--stream: the configuration has no audio; it has image"),
        (["--text"], "--text: condition.encoder is not set"),
        (["--batch", "0"], "--batch: 0 must be at least 1"),
        ([latents(place / "latents")], "streams.image.data: holds latents already"),
    ):
        assert encode(place, tmp_path / "out", *option) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert encode(place, place / "latents", "--views", "2", "seed=4") == 2
    error = capsys.readouterr().err
    assert "--views: 1 when" in error
    assert "seed: 3 when" in error
    assert "--dtype: 'float32' when" in error


def test_an_output_that_is_a_file_is_refused_before_the_configuration_is_read(place, tmp_path, capsys):
    (tmp_path / "taken").write_text("x")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert main(["encode", str(place / "no such.yaml"), "--out", str(out)]) == 2
        assert f"--out: {tmp_path / 'taken'} is no folder" in capsys.readouterr().err


def test_what_was_set_aside_is_tried_again_with_retry_alone(place, tmp_path, capsys, monkeypatch):
    """A decoder that was missing the first time: the same command says so, and does not read the records again."""
    read = "modalities.image.read_image"
    real, refused = modalities.image.read_image, []

    def refusing(media, origin, *rest):
        if origin.endswith(("02.png", "17.png")):
            refused.append(origin)
            raise ZeroDivisionError("no decoder")
        return real(media, origin, *rest)

    monkeypatch.setattr(read, refusing)
    assert encode(place, tmp_path) == 0
    assert "17 samples of 20 records, 3 could not be used (listed in " in capsys.readouterr().out
    assert main(["inspect", str(tmp_path)]) == 0
    assert "02.png: cannot be decoded as an image: ZeroDivisionError: no decoder" in capsys.readouterr().out
    refused.clear()
    assert encode(place, tmp_path) == 0
    assert refused == []
    assert "3 records were set aside earlier" in capsys.readouterr().out
    monkeypatch.setattr(read, real)
    assert encode(place, tmp_path, "--retry") == 0
    shown = capsys.readouterr().out
    assert "3 records that were set aside are tried again; 2 chunks are made anew" in shown
    assert "19 samples of 20 records, 1 could not be used" in shown
    assert encode(place, tmp_path / "whole") == 0
    assert content(tmp_path / "image") == content(tmp_path / "whole" / "image")


@pytest.mark.parametrize("name", ["write_durably", "mds_writer"])
def test_a_full_disk_anywhere_is_one_line_and_the_same_command_goes_on(name, place, tmp_path, capsys, monkeypatch):
    full = OSError(28, "No space left on device")

    def fail(*given, **named):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(f"modalities.latents.chunks.{name}", fail if name == "write_durably" else lambda: fail)
        assert encode(place, tmp_path) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'image'}: cannot be written: No space left on device" in error
    assert encode(place, tmp_path) == 0


def test_a_full_disk_when_all_parts_are_there(place, tmp_path, capsys, monkeypatch):
    def publish(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("modalities.latents.chunks.ChunkFolder.publish", publish)
        assert encode(place, tmp_path) == 2
    assert "No space left on device; all chunks are there, and the same command goes on" in capsys.readouterr().err
    assert encode(place, tmp_path) == 0


def test_shares_and_what_is_said_of_them(place, tmp_path, capsys):
    assert encode(place, tmp_path, "--shard", "2/2") == 0
    assert "this shard is done; 2 of 3 chunks of" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path)]) == 0
    assert "not finished: 1 of 3 chunks, 8 samples, 0 bad" in capsys.readouterr().out
    assert encode(place, tmp_path, "--shard", "1/2") == 0
    assert "19 samples of 20 records, 1 could not be used" in capsys.readouterr().out


def test_inspect_verifies_and_decodes(place, run, weights, tmp_path, capsys):
    folder = Path(shutil.copytree(place / "latents", tmp_path / "latents"))
    assert main(["inspect", str(folder), "--verify", "--decode", "3", "--out", str(tmp_path / "look")]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "samples   19 of 20 records; 2 classes",
        "part      image: image",
        "latents   1 x 2 x 2 tokens (t, h, w) of 16 channels, float32, with deviations",
        "statistics published with the weights",
        "verified  every shard and every sample is intact",
        "bad data  1 records, listed in",
        "10.png: the file is empty (0 bytes)\n",
    ):
        assert expected in shown
    assert sorted(path.suffix for path in (tmp_path / "look").iterdir()) == [".png"] * 3 + [".txt"] * 3
    assert "photo 0" in next((tmp_path / "look").glob("image-000*.txt")).read_text()
    weights(other=True)
    again = ["inspect", str(folder / "image"), "--decode", "1", "--out", str(tmp_path / "look")]
    assert main([*again, "--autoencoder", str(run.parent / "vae")]) == 2
    assert "are not those that the latents were encoded with" in capsys.readouterr().err
    shard = folder / "image" / "chunk-00000" / "shard.00000.mds"
    flip(shard, shard.stat().st_size - 10)
    (folder / "image" / "chunk-00001" / "shard.00000.mds").unlink()
    assert main(["inspect", str(folder), "--verify"]) == 1
    shown = capsys.readouterr().out
    assert f"WRONG {shard}: damaged: its sha256 is not that of the manifest" in shown
    assert "chunk-00001/shard.00000.mds: missing" in shown
    assert "shard.00000.mds:6: damaged: its checksum does not fit" in shown
    assert main(["inspect", str(place / "photos"), "--verify"]) == 2
    assert "holds no encoded data" in capsys.readouterr().err


def test_damaged_latents_are_replaced_and_noted(run, tmp_path):
    folder = Path(shutil.copytree(run.parent / "latents", tmp_path / "latents"))
    for number in range(3):
        shard = folder / "image" / f"chunk-0000{number}" / "shard.00000.mds"
        flip(shard, shard.stat().st_size - 10)
    assert train(tmp_path / "run", latents(folder), config=run.parent / "config.yaml") == 0
    reasons = [entry["reason"] for entry in read_lines(tmp_path / "run" / "quarantine.jsonl")]
    assert reasons
    assert all("damaged: its checksum does not fit" in reason for reason in reasons)
