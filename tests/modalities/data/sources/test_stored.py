"""Rows of stored latents and their manifest: what is written comes back, and what is not so is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from autoencoders.base import LatentNormalization
from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.base import Record, StoredLatents
from modalities.latents.format import (
    Manifest,
    StoredPart,
    TextFeatures,
    checksum,
    merged_statistics,
    pack,
    read_manifest,
    row_columns,
    stored_manifests,
    unpack,
)

N, C, WIDTH = 6, 4, 3
AUDIO = (5, 2)  # (N, C) of a second part
ABOUT = {"index": 0, "view": 0, "origin": "photos/a/1.png", "bytes": 12}


def stored_part(**changes) -> StoredPart:
    """The part `image` of a manifest."""
    plain = {
        "modality": "image",
        "grid": (1, 2, 3),
        "channels": C,
        "deviation": True,
        "autoencoder": {"kind": "sd_vae", "path": "weights", "digest": "12"},
        "media": {"size": [16, 24]},
        "normalization": {"mean": [0.0] * C, "std": [1.0] * C, "measured": True},
    }
    return StoredPart(**plain | changes)


def audio_part(**changes) -> StoredPart:
    """The part `audio`, without a deviation."""
    normalization = {"mean": [0.0] * AUDIO[1], "std": [1.0] * AUDIO[1], "measured": True}
    plain = {"modality": "audio", "grid": (AUDIO[0], 1, 1), "channels": AUDIO[1], "deviation": False}
    return stored_part(
        **plain | {"normalization": normalization, "autoencoder": {"kind": "mdct", "digest": ""}} | changes
    )


def manifest(**changes) -> Manifest:
    plain = {
        "stream": "image",
        "parts": {"image": stored_part()},
        "records": 5,
        "samples": 4,
        "bad": 1,
        "views": 1,
        "bytes": 300,
        "dtype": "float32",
        "text": None,
        "labels": ["cat", "dog"],
        "seed": 0,
        "source": {"kind": "folder", "path": "photos", "fingerprint": "34"},
        "code": {"version": "0"},
        "date": "2026-01-01",
        "shards": [{"name": f"chunk/{i}", "samples": 2, "bytes": 150, "sha256": f"{i}"} for i in range(2)],
    }
    return Manifest(**plain | changes)


def of_two_parts(**changes) -> Manifest:
    return manifest(parts={"image": stored_part(), "sound": audio_part()}, **changes)


def record(**changes) -> Record:
    return replace(Record("a/1", "photos/a/1.png", b"", captions=("one", "two words"), label="cat"), **changes)


def latents(scale: float = 1.0) -> StoredLatents:
    mean, deviation = torch.randn(2, N, C, generator=generator("latents")) * scale
    return StoredLatents(mean, deviation.abs())


def audio() -> StoredLatents:
    return StoredLatents(torch.randn(AUDIO, generator=generator("sound")))


def row(dtype: str = "float32", text=None, scale: float = 1.0, of: Record | None = None, **more: StoredLatents) -> dict:
    """A row with the part `image`, and `more`."""
    return pack(of or record(), ABOUT, dtype, {"image": latents(scale), **more}, text)


def test_a_row_comes_back_with_all_that_it_holds():
    found = unpack(row(), manifest(), "shard:0")
    media = found.part("image").media
    assert torch.equal(media.mean, latents().mean)
    assert torch.equal(media.deviation, latents().deviation)
    assert (found.key, found.captions, found.label, found.origin) == (
        "a/1",
        ("one", "two words"),
        "cat",
        "photos/a/1.png",
    )
    assert found.text == ()
    assert set(row()) == set(manifest().columns())


def test_every_part_of_a_sample_has_columns_of_its_own():
    stored = row(sound=audio())
    assert set(stored) == set(of_two_parts().columns()) == {*row(), "mean.sound"}
    assert of_two_parts().columns()["mean.sound"] == "ndarray:float32:5,2"
    found = unpack(stored, of_two_parts(), "shard:0")
    assert list(found.parts) == ["image", "sound"]
    assert torch.equal(found.part("image").media.deviation, latents().deviation)
    assert torch.equal(found.part("sound").media.mean, audio().mean)
    assert found.part("sound").media.deviation is None
    assert found.part("depth").media == b""  # never the latents of another part
    for wrong, one in ((row(), of_two_parts()), (stored, manifest())):
        with pytest.raises(DataError, match=r"shard:0: expected the columns .*, got"):
            unpack(wrong, one, "shard:0")


def test_half_precision_is_the_nearest_half():
    found = unpack(row("float16"), manifest(dtype="float16"), "shard:0").part("image").media.mean
    assert found.dtype == torch.float32
    assert torch.equal(found, latents().mean.half().float())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_text_features_of_any_length_come_back_to_the_bit(dtype):
    features = [torch.randn(length, WIDTH, generator=generator(length)).to(getattr(torch, dtype)) for length in (5, 0)]
    about = TextFeatures({"kind": "t5"}, "path", "digest", WIDTH, dtype)
    found = unpack(row(text=features), manifest(text=about), "shard:0").text
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, features, strict=True))
    without = unpack(row(text=[], of=record(captions=())), manifest(text=about), "shard:0")
    assert without.text == ()
    short = row(text=features)
    short["text_rows"] = [5, 1]
    short["crc"] = checksum(short)
    with pytest.raises(DataError, match="the stored text features do not fit its 2 captions"):
        unpack(short, manifest(text=about), "shard:0")


def test_a_value_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(
        ConfigError, match=r"photos/a/1.png: its image latents hold .*, and float16 ends at 65504: .* float32"
    ):
        row("float16", scale=1e5)
    assert np.isfinite(row("float32", scale=1e5)["mean.image"]).all()


@pytest.mark.parametrize("name", sorted(row_columns({"image": (N, C)}, ["image"], "float32", True)))
def test_a_change_of_any_column_is_noticed(name):
    about = TextFeatures({"kind": "t5"}, "path", "digest", WIDTH, "float32")
    stored = row(text=[torch.ones(2, WIDTH), torch.ones(1, WIDTH)])
    unpack(stored, manifest(text=about), "shard:0")
    value = stored[name]
    if isinstance(value, np.ndarray):
        stored[name] = value.copy()
        stored[name].view(np.uint8).reshape(-1)[7] ^= 1
    elif isinstance(value, bytes):
        stored[name] = bytes([value[0] ^ 1]) + value[1:]
    else:
        stored[name] = {"crc": 3, "label": "dog", "key": "a/2", "about": {}}.get(name, [1, 2])
    with pytest.raises(DataError, match="shard:0: damaged: its checksum does not fit"):
        unpack(stored, manifest(text=about), "shard:0")


def test_latents_that_are_not_finite_are_refused():
    stored = row()
    stored["deviation.image"] = stored["deviation.image"].copy()
    stored["deviation.image"][2, 1] = np.nan
    stored["crc"] = checksum(stored)
    with pytest.raises(DataError, match=r"shard:0: a/1: deviation\.image: the latents hold NaN or infinite values"):
        unpack(stored, manifest(), "shard:0")


def test_a_row_that_is_not_what_the_manifest_says_is_refused():
    for changes, reason in (
        (
            {"parts": {"image": stored_part(grid=(1, 3, 3))}},
            r"expected float32 \(9, 4\) as the manifest says, got float32 \(6, 4\)",
        ),
        ({"dtype": "float16"}, "expected float16"),
        ({"parts": {"image": stored_part(deviation=False)}}, "expected the columns"),
    ):
        with pytest.raises(DataError, match=reason):
            unpack(row(), manifest(**changes), "shard:0")


def test_a_manifest_comes_back_from_its_text(tmp_path):
    about = TextFeatures({"kind": "t5", "layers": [1]}, "path", "digest", WIDTH, "bfloat16")
    written = of_two_parts(text=about)
    (tmp_path / "manifest.json").write_text(written.to_json())
    assert read_manifest(tmp_path) == written
    assert [part.shape for part in written.parts.values()] == [(N, C), AUDIO]
    assert len(written.to_json().splitlines()) == len(json.loads(written.to_json())) + 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 7}, r"not a manifest of format 2 \(its format: 7\); encode the data again"),
        ({"samples": 9}, "samples: 9, but its shards have 4"),
        ({"bytes": 1}, "bytes: 1, but its shards have 300"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of float16, float32"),
        (
            {"parts": {"image": asdict(stored_part(channels=5))}},
            r"parts\.image\.normalization: of 4 channels, and the latents have 5",
        ),
        ({"parts": {}}, "parts: there are none"),
        ({"more": 1}, "not a manifest of format 2"),
        ({"parts": {"image": asdict(stored_part(grid=3))}}, "damaged: TypeError"),
        ({"parts": {"image": {"grid": [1, 2, 3]}}}, "damaged: TypeError"),
        ({"shards": [{"name": "a"}]}, "damaged: KeyError: 'samples'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, reason, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(manifest().to_json()) | change))
    with pytest.raises(ConfigError, match=reason):
        read_manifest(tmp_path)


def test_a_manifest_of_one_modality_as_earlier_versions_wrote_it_is_refused(tmp_path):
    values = json.loads(manifest().to_json())
    del values["stream"], values["parts"]
    (tmp_path / "manifest.json").write_text(json.dumps(values | asdict(stored_part()) | {"format": 1}))
    with pytest.raises(ConfigError, match=r"not a manifest of format 2 \(its format: 1\); encode the data again"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_says_what_it_is(tmp_path):
    with pytest.raises(ConfigError, match="write it with `selfflow encode`"):
        read_manifest(tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="it holds image: add the stream to the path"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_manifest(tmp_path / "image")
    (tmp_path / "encode.json").write_text("{}")
    with pytest.raises(ConfigError, match="its encoding is not finished: run the same `selfflow encode` again"):
        read_manifest(tmp_path)


def of_samples(part: torch.Tensor) -> Manifest:
    """Of a folder with latents (B, N, C)."""
    normalization = {**LatentNormalization.from_latents([part], 1e-6).to_dict(), "measured": True}
    return manifest(samples=len(part), parts={"image": stored_part(normalization=normalization), "sound": audio_part()})


def test_measured_statistics_of_several_folders_are_those_of_all_their_latents():
    parts = [torch.randn(samples, N, C, generator=generator(samples)) * samples + samples for samples in (3, 5)]
    together, expected = (
        merged_statistics(list(map(of_samples, parts)), "image"),
        LatentNormalization.from_latents(parts),
    )
    torch.testing.assert_close(together.mean, expected.mean)
    torch.testing.assert_close(together.std, expected.std)
    published = stored_part(normalization={"mean": [0.0] * C, "std": [1.0] * C, "measured": False})
    assert torch.equal(merged_statistics([manifest(parts={"image": published})] * 2, "image").std, torch.ones(C))


def test_each_part_has_its_own_statistics():
    found = of_samples(torch.randn(3, N, C) * 5)
    assert merged_statistics([found], "image").std.shape == (C,)
    assert torch.equal(merged_statistics([found], "sound").std, torch.ones(AUDIO[1]))


def test_the_floor_of_measured_statistics_is_that_of_the_reader():
    quiet = torch.randn(8, N, C, generator=generator("quiet")) * torch.tensor([1.0, 1.0, 0.05, 0.0])
    for floor in (0.01, 0.1):
        found, expected = (
            merged_statistics([of_samples(quiet)], "image", floor),
            LatentNormalization.from_latents([quiet], floor),
        )
        torch.testing.assert_close(found.std, expected.std)
    assert expected.std[2] == expected.std[3] > 0.05


def test_sources_of_media_store_no_latents():
    assert stored_manifests(object()) == []
