"""selfflow encode for samples of several parts: each is stored, and training on them sees what it sees of the media."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")

from configs.assembly import Assembly
from configs.load import load_config
from core.training.checkpoint import CheckpointStore
from core.training.records import read_lines
from modalities.base import Record
from tests.modalities.data.sets import flip
from tests.tools.tiny import published, result, train
from tools.cli import main

COUNT = 18
CONFIG = f"""
method: self_flow
seed: 3
streams:
  clips:
    batch: 4
    data: {{count: {COUNT}}}
    parts:
      video: {{media: {{size: [16], frames: 9, fps: 8, patch: 4, patch_frames: 2}}}}     # 80 tokens of 96 channels
      audio: {{std_floor: 0.25, media: {{sample_rate: 4000, seconds: 1.125, hop: 125}}}} # 37 tokens of 125 channels
    modes: {{video_given: 0.3, audio_given: 0.3}}
condition: {{text: {{vocabulary: 64, max_words: 6, rows_per_word: 4}}}}
trunk: {{mmdit: {{size: tiny, width: 128, heads: 2, double_blocks: 1, single_blocks: 2, mlp_ratio: 1.0}}}}
training: {{steps: 3, save_every: 3, device: cpu, ema: {{decay: 0.1}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A configuration of videos with their audio, and both parts of them encoded."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "config.yaml").write_text(CONFIG)
    assert encode(folder, folder / "latents", "--dtype", "float32") == 0
    return folder


def encode(place: Path, out: Path, *options: str) -> int:
    command = ["encode", str(place / "config.yaml"), "--out", str(out), "--stream", "clips", "--workers", "0"]
    return main([*command, "--chunk", "8", *options])


def latents(path: Path) -> str:
    return f"streams.clips.data={{kind: latents, path: {path / 'clips'}}}"


def assembly(place: Path, *overrides: str) -> Assembly:
    return Assembly(load_config(place / "config.yaml", list(overrides)), place)


def records(one: Assembly) -> dict[str, Record]:
    source = one.sources["clips"]
    return {record.key: record for record in map(source.read, range(len(source)))}


def test_the_manifest_says_what_every_part_is(place):
    manifest = json.loads((place / "latents" / "clips" / "manifest.json").read_text())
    assert (manifest["stream"], manifest["samples"], manifest["bad"]) == ("clips", COUNT, 0)
    found = {name: (part["modality"], part["channels"]) for name, part in manifest["parts"].items()}
    assert found == {"video": ("video", 96), "audio": ("audio", 125)}
    assert [part["autoencoder"]["kind"] for part in manifest["parts"].values()] == ["space_time_pixels", "mdct"]
    settings = json.loads((place / "latents" / "clips" / "encode.json").read_text())
    assert list(settings["parts"]) == ["video", "audio"]
    assert settings["parts"]["audio"]["media"]["hop"] == 125


@pytest.mark.slow
def test_several_devices_write_the_same_bytes(place, tmp_path):
    one = place / "latents" / "clips"
    assert encode(place, tmp_path, "--dtype", "float32", "--devices", "2") == 0

    def files(folder: Path) -> dict[str, bytes]:
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if name != "manifest.json"}  # has the date

    assert len(files(one)) > 3
    assert files(tmp_path / "clips") == files(one)


def test_the_first_batch_is_that_of_the_media(place):
    """To the bit but for the normalization, which is measured in another order."""
    media, stored = assembly(place), assembly(place, latents(place / "latents"))
    raw = stored.dataset[0]
    of_media, epoch = records(media), 0
    modes = [media.dataset.mode("clips", position) for position in range(len(raw.keys))]
    samples = [
        media.dataset.draw("clips", of_media[key], epoch, mode) for key, mode in zip(raw.keys, modes, strict=True)
    ]
    expected = media.dataset.collate("clips", samples, ())
    assert [part.name for part in raw.parts] == ["video", "audio"]
    for seen, wanted in zip(raw.parts, expected.parts, strict=True):
        assert torch.equal(seen.latents, wanted.latents)
        assert torch.equal(seen.noise, wanted.noise)
        assert seen.media is None
    assert torch.equal(raw.conditioning_mask, expected.conditioning_mask)
    assert torch.equal(raw.student.values, expected.student.values)
    assert raw.counts == expected.counts
    segments = (each.batch.segments for each in (stored.preprocess(raw), media.preprocess(expected)))
    for seen, wanted in zip(*segments, strict=True):
        torch.testing.assert_close(seen.x0, wanted.x0)
        assert torch.equal(seen.ids, wanted.ids)


def test_each_part_is_normalized_with_its_own_statistics_and_floor(place):
    media, stored = assembly(place).normalization, assembly(place, latents(place / "latents")).normalization
    assert list(stored) == ["video", "audio"]
    for name, own in media.items():
        torch.testing.assert_close(stored[name].mean, own.mean)
        torch.testing.assert_close(stored[name].std, own.std)
    quiet = stored["audio"].std.min()
    assert (stored["audio"].std == quiet).sum() > 1  # the floor is at work: many channels have it
    assert quiet > 0.2 * stored["audio"].std.square().mean().sqrt()


@pytest.fixture(scope="module")
def run(place, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    assert train(path, latents(place / "latents"), config=place / "config.yaml") == 0
    return path


def test_it_trains_and_a_checkpoint_knows_the_autoencoder_of_every_part(run):
    assert published(run) == [3]
    assert len(read_lines(run / "metrics.jsonl")) == 3
    assert read_lines(run / "quarantine.jsonl") == []
    extra = CheckpointStore(run / "checkpoints").extra(3)
    assert extra["autoencoders"] == {"clips": {"video": "", "audio": ""}}
    assert sorted(extra["normalization"]) == ["audio", "video"]


def test_workers_change_nothing(run, place, tmp_path):
    assert encode(place, tmp_path, "--dtype", "float32", "--workers", "2", "--batch", "5") == 0
    settings = (latents(tmp_path), "training.workers=1")
    assert train(tmp_path / "run", *settings, config=place / "config.yaml") == 0
    assert result(tmp_path / "run") == result(run)


def test_inspect_verifies_and_writes_every_part(place, tmp_path, capsys):
    folder, out = place / "latents", tmp_path / "look"
    assert main(["inspect", str(folder), "--verify", "--decode", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for expected in (
        f"encoded   {folder / 'clips'}: stream clips",
        "part      video: video",
        "latents   5 x 4 x 4 tokens (t, h, w) of 96 channels, float32",
        "part      audio: audio",
        "verified  every shard and every sample is intact",
    ):
        assert expected in shown
    assert sorted(path.suffix for path in out.iterdir()) == [".mp4"] * 2 + [".txt"] * 2
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(next(out.glob("clips-000*.mp4")))) as file:
        assert sorted(stream.type for stream in file.streams) == ["audio", "video"]


def test_a_damaged_part_costs_the_sample(place, tmp_path):
    assert encode(place, tmp_path) == 0
    shard = tmp_path / "clips" / "chunk-00002" / "shard.00000.mds"
    flip(shard, shard.stat().st_size - 100)  # among the latents of the video of the last row
    assert main(["inspect", str(tmp_path), "--verify"]) == 1
    assert train(tmp_path / "run", latents(tmp_path), "training.steps=5", config=place / "config.yaml") == 0
    (entry,) = read_lines(tmp_path / "run" / "quarantine.jsonl")
    assert "damaged: its checksum does not fit" in entry["reason"]


def test_a_stream_may_read_one_of_the_parts(place):
    media = "{sample_rate: 4000, seconds: 1.125, hop: 125}"
    audio = f"{{modality: audio, batch: 2, data: {{kind: latents, path: latents/clips}}, media: {media}}}"
    one = assembly(place, "streams.clips=null", f"streams.sound={audio}")
    (part,) = one.dataset[0].parts
    assert (part.name, tuple(part.latents.shape)) == ("audio", (2, 37, 125))


def test_a_stream_whose_parts_are_not_there_is_refused(place, tmp_path, capsys):
    renamed = CONFIG.replace("video: {media", "picture: {modality: video, media").replace(
        "video_given", "picture_given"
    )
    (tmp_path / "config.yaml").write_text(renamed)
    assert train(tmp_path / "run", latents(place / "latents"), config=tmp_path / "config.yaml") == 2
    error = capsys.readouterr().err
    there = "its samples have the parts video (video), audio (audio), and no picture (video)"
    assert f"streams.clips.data: {there}" in error
    assert not (tmp_path / "run").exists()
