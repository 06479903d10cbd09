"""Encoding of samples of several parts, videos with their audio: cut together, and left out together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import Media, Record
from modalities.data.loader import load_parts
from modalities.latents import encode
from modalities.latents.encode import Job
from modalities.latents.source import LatentsSource
from modalities.streams import make_parts
from modalities.video import VideoAdapter, VideoConfig
from tests.modalities.latents.jobs import chunk_folder, content, make


def mean(record: Record, part: str) -> torch.Tensor:
    """(N, C) of a stored part."""
    return record.parts[part].data.mean


class Videos:
    """`count` videos of 2 s with their audio, each part an array of its own. The audio of those in `mute` is gone."""

    def __init__(self, count: int = 6, mute: tuple[int, ...] = ()):
        self.count, self.mute = count, mute

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        draws = np.random.default_rng(index)
        frames = draws.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
        audio = draws.normal(0, 0 if index in self.mute else 0.1, (8000, 1)).astype(np.float32)
        parts = {"video": Media(frames, rate=8.0), "audio": Media(audio, rate=4000.0)}
        return Record(f"c{index}", f"memory/{index}", frames, captions=("a",), rate=8.0, parts=parts)

    def labels(self) -> list[str]:
        return []

    def fingerprint(self) -> str:
        return f"videos {self.count} {self.mute}"


def videos_job(**changes) -> Job:
    """Windows of half a second, at random places."""
    video = VideoAdapter(VideoConfig([8, 8], frames=4, fps=8, patch=4, patch_frames=1))
    audio = AudioAdapter(AudioConfig(sample_rate=4000, seconds=0.5, hop=125))
    parts = make_parts({"video": video, "audio": audio})
    return replace(Job("clips", Videos(), parts, 3, 2, 4, "float32", 100), **changes)


def about_videos() -> dict:
    named = {"autoencoder": {"kind": "any", "digest": ""}, "media": {}}
    return {"parts": {"video": named, "audio": named}, "source": {}}


def test_a_view_of_several_parts_is_what_training_loads_in_that_epoch(tmp_path):
    """Image and audio are cut together, so a stored view must come by the same road."""
    made = videos_job()
    manifest = make(made, tmp_path, about=about_videos())
    assert [part.modality for part in manifest.parts.values()] == ["video", "audio"]
    source = LatentsSource(tmp_path, ("video", "audio"))
    assert len(source) == 12
    for place, view in ((0, 0), (1, 1)):
        loaded = load_parts("clips", made.parts, made.source.read(0), view, made.seed)
        for (name, part), media in zip(made.parts.items(), loaded, strict=True):
            assert torch.equal(mean(source.read(place), name), part.adapter.encode(media[None])[0])
    first, second = source.read(0), source.read(1)
    assert all(not torch.equal(mean(first, name), mean(second, name)) for name in made.parts)


def test_workers_and_batches_change_no_byte_of_several_parts(tmp_path):
    make(videos_job(), tmp_path / "one", about=about_videos())
    make(videos_job(), tmp_path / "two", workers=2, batch=16, about=about_videos())
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_record_whose_audio_is_unusable_is_left_out_whole(tmp_path):
    manifest = make(videos_job(source=Videos(6, mute=(2,))), tmp_path, about=about_videos())
    assert (manifest.samples, manifest.bad) == (10, 1)
    for name in ("video", "audio"):
        tokens = torch.cat([mean(record, name) for record in stored_records(tmp_path)]).double()
        torch.testing.assert_close(manifest.parts[name].statistics().mean, tokens.mean(0).float())


def stored_records(path: Path) -> list[Record]:
    source = LatentsSource(path)
    return [source.read(index) for index in range(len(source))]


def test_latents_of_any_part_that_are_not_finite_are_set_aside(tmp_path, monkeypatch):
    made, real = videos_job(views=1), AudioAdapter.posterior
    bad, _ = real(made.parts["audio"].adapter, load_parts("clips", made.parts, Videos().read(3), 0, made.seed)[1][None])

    def posterior(self, media):
        found, deviation = real(self, media)
        return found.where((found != bad).any(dim=(1, 2), keepdim=True), torch.nan), deviation

    monkeypatch.setattr(AudioAdapter, "posterior", posterior)
    manifest = make(made, tmp_path, about=about_videos())
    assert (manifest.samples, manifest.bad) == (5, 1)
    (line,) = chunk_folder(made, tmp_path).noted()
    assert line["reason"] == "memory/3: its audio latents hold NaN or infinite values"


def test_the_size_of_a_record_counts_a_file_of_several_parts_once(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x" * 10)
    (tmp_path / "audio.wav").write_bytes(b"x" * 5)
    record = Record("a", "a", tmp_path / "clip.mp4")
    apart = replace(record, parts={"audio": Media(tmp_path / "audio.wav")})
    assert encode.media_bytes(record, ("video", "audio")) == 10
    assert encode.media_bytes(apart, ("video", "audio")) == 15
