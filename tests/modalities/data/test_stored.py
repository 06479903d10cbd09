"""Rows of stored latents and their manifest: what is written comes back, and what is not so is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from autoencoders.base import Whitening
from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.base import Record
from modalities.data.stored import (
    Manifest,
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
WHITENING = {"mean": [0.0] * C, "std": [1.0] * C, "measured": True}


def manifest(**changes) -> Manifest:
    plain = {
        "modality": "image",
        "records": 5,
        "samples": 4,
        "bad": 1,
        "views": 1,
        "bytes": 300,
        "grid": (1, 2, 3),
        "channels": C,
        "dtype": "float32",
        "deviation": True,
        "autoencoder": {"kind": "sd_vae", "path": "weights", "digest": "12"},
        "media": {"size": [16, 24]},
        "text": None,
        "whitening": WHITENING,
        "labels": ["cat", "dog"],
        "seed": 0,
        "source": {"kind": "folder", "path": "photos", "fingerprint": "34"},
        "code": {"version": "0"},
        "date": "2026-01-01",
        "shards": [{"name": f"part/{i}", "samples": 2, "bytes": 150, "sha256": f"{i}"} for i in range(2)],
    }
    return Manifest(**plain | changes)


def record(**changes) -> Record:
    return replace(Record("a/1", "photos/a/1.png", b"", captions=("one", "two words"), label="cat"), **changes)


def latents(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    mean, deviation = torch.randn(2, N, C, generator=generator("latents")) * scale
    return mean, deviation.abs()


def row(dtype: str = "float32", text=None, scale: float = 1.0, of: Record | None = None) -> dict:
    about = {"index": 0, "view": 0, "origin": "photos/a/1.png", "bytes": 12}
    return pack(of or record(), about, dtype, *latents(scale), text)


def test_a_row_comes_back_with_all_that_it_holds():
    mean, deviation = latents()
    found = unpack(row(), manifest(), "shard:0")
    assert torch.equal(found.media.mean, mean)
    assert torch.equal(found.media.deviation, deviation)
    assert (found.key, found.captions, found.label, found.origin) == (
        "a/1",
        ("one", "two words"),
        "cat",
        "photos/a/1.png",
    )
    assert found.text == ()
    assert set(row()) == set(row_columns((N, C), "float32", True, False))


def test_half_precision_is_the_nearest_half():
    found = unpack(row("float16"), manifest(dtype="float16"), "shard:0").media.mean
    assert found.dtype == torch.float32
    assert torch.equal(found, latents()[0].half().float())


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
        ConfigError, match=r"photos/a/1.png: its latents hold .*, and float16 ends at 65504: .* float32"
    ):
        row("float16", scale=1e5)
    assert np.isfinite(row("float32", scale=1e5)["mean"]).all()


@pytest.mark.parametrize("name", sorted(row_columns((N, C), "float32", True, True)))
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
    stored["deviation"] = stored["deviation"].copy()
    stored["deviation"][2, 1] = np.nan
    stored["crc"] = checksum(stored)
    with pytest.raises(DataError, match="shard:0: a/1: deviation: the latents hold NaN or infinite values"):
        unpack(stored, manifest(), "shard:0")


def test_a_row_that_is_not_what_the_manifest_says_is_refused():
    for changes, reason in (
        ({"grid": (1, 3, 3)}, r"expected float32 \(9, 4\) as the manifest says, got float32 \(6, 4\)"),
        ({"dtype": "float16"}, "expected float16"),
        ({"deviation": False}, "expected the columns"),
    ):
        with pytest.raises(DataError, match=reason):
            unpack(row(), manifest(**changes), "shard:0")


def test_a_manifest_comes_back_from_its_text(tmp_path):
    about = TextFeatures({"kind": "t5", "layers": [1]}, "path", "digest", WIDTH, "bfloat16")
    written = manifest(text=about)
    (tmp_path / "manifest.json").write_text(written.to_json())
    assert read_manifest(tmp_path) == written
    assert written.shape == (N, C)
    assert len(written.to_json().splitlines()) == len(json.loads(written.to_json())) + 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 7}, r"not a manifest of format 1 \(its format: 7\)"),
        ({"samples": 9}, "samples: 9, but its shards have 4"),
        ({"bytes": 1}, "bytes: 1, but its shards have 300"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of float16, float32"),
        ({"channels": 5}, "whitening: of 4 channels, and the latents have 5"),
        ({"more": 1}, "not a manifest of format 1"),
        ({"grid": 3}, "damaged: TypeError"),
        ({"shards": [{"name": "a"}]}, "damaged: KeyError: 'samples'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, reason, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(json.loads(manifest().to_json()) | change))
    with pytest.raises(ConfigError, match=reason):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_says_what_it_is(tmp_path):
    with pytest.raises(ConfigError, match="write it with `selfflow encode`"):
        read_manifest(tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="it holds image: add the modality to the path"):
        read_manifest(tmp_path)
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_manifest(tmp_path / "image")
    (tmp_path / "encode.json").write_text("{}")
    with pytest.raises(ConfigError, match="its encoding is not finished: run the same `selfflow encode` again"):
        read_manifest(tmp_path)


def test_measured_statistics_of_several_folders_are_those_of_all_their_latents():
    parts = [torch.randn(samples, N, C, generator=generator(samples)) * samples + samples for samples in (3, 5)]
    manifests = []
    for part in parts:
        found = Whitening.from_latents([part])
        manifests.append(manifest(samples=len(part), whitening={**found.to_dict(), "measured": True}))
    assert prod(manifests[0].grid) == N
    together, expected = merged_statistics(manifests), Whitening.from_latents(parts)
    torch.testing.assert_close(together.mean, expected.mean)
    torch.testing.assert_close(together.std, expected.std)
    published = [manifest(whitening={**WHITENING, "measured": False})] * 2
    assert torch.equal(merged_statistics(published).std, torch.ones(C))


def test_sources_of_media_store_no_latents():
    assert stored_manifests(object()) == []
