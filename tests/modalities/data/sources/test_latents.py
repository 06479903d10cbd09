"""Encoded folders as a source of records: one damaged byte costs one sample, and a lie about the whole is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from core.errors import ConfigError, DataError
from modalities.data.sources.build import ConcatConfig, build_source
from modalities.latents.format import stored_manifests
from modalities.latents.source import LatentsConfig, LatentsSource
from modalities.synthetic.config import SyntheticConfig
from tests.modalities.data.sets import flip
from tests.modalities.data.sources.shards import change_index
from tests.modalities.latents.jobs import Images, images_job, make


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """21 images in three shards."""
    path = tmp_path_factory.mktemp("encoded")
    make(images_job(), path)
    return path


@pytest.fixture
def copy(encoded, tmp_path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "copy"))


def usable(source: LatentsSource) -> tuple[set[str], list[str]]:
    """Keys of what can be read, and why the rest cannot."""
    keys, reasons = set(), []
    for index in range(len(source)):
        try:
            keys.add(source.read(index).key)
        except DataError as error:
            reasons.append(str(error))
    return keys, reasons


def change_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_all_records_in_their_order(encoded):
    source = LatentsSource(encoded, ("image",))
    assert len(source) == 21
    assert [source.read(index).key for index in range(21)] == [f"k{index}" for index in range(21)]
    part, stored = images_job().parts["image"], source.read(4).parts["image"].data
    assert stored.mean.shape == (len(part.ids), part.adapter.channels)
    assert stored.deviation is None
    assert source.blocks().sizes.tolist() == [8, 8, 5]


def test_a_flipped_byte_costs_one_sample(copy):
    shard = copy / "chunk-00001" / "shard.00000.mds"
    flip(shard, shard.stat().st_size - 100)  # among the latents of the last row
    keys, reasons = usable(LatentsSource(copy, ("image",)))
    assert keys == {f"k{index}" for index in range(21)} - {"k15"}
    (reason,) = reasons
    assert "chunk-00001/shard.00000.mds:7: damaged: its checksum does not fit" in reason


def test_a_missing_shard_costs_its_samples(copy):
    (copy / "chunk-00002" / "shard.00000.mds").unlink()
    keys, reasons = usable(LatentsSource(copy, ("image",)))
    assert keys == {f"k{index}" for index in range(16)}
    assert len(reasons) == 5
    assert all("chunk-00002/shard.00000.mds: missing" in reason for reason in reasons)


def test_a_shard_that_was_cut_costs_its_samples(copy):
    shard = copy / "chunk-00000" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    keys, reasons = usable(LatentsSource(copy, ("image",)))
    assert keys == {f"k{index}" for index in range(8, 21)}
    assert "bytes, index.json says" in reasons[0]


def test_an_index_that_lies_is_refused(copy):
    change_index(copy, lambda index: index["shards"].pop())
    with pytest.raises(DataError, match=r"index.json has 16 samples in 2 shards, and manifest.json says 21 in 3"):
        LatentsSource(copy, ("image",))


def test_a_manifest_that_lies_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())

    def of_part(**changes) -> dict:
        return {"parts": {"image": manifest["parts"]["image"] | changes}}

    for changes, error, reason in (
        (
            of_part(grid=[1, 3, 2]),
            DataError,
            "'mean.image' is ndarray:float32:4,48, and manifest.json says ndarray:float32:6,48",
        ),
        ({"dtype": "float16"}, DataError, "manifest.json says ndarray:float16:4,48"),
        (of_part(deviation=True), DataError, "column 'deviation.image' is missing, and manifest.json says ndarray"),
        ({"samples": 20}, ConfigError, "samples: 20, but its shards have 21"),
        ({"shards": manifest["shards"][:2]}, ConfigError, "samples: 21, but its shards have 16"),
    ):
        change_manifest(copy, **manifest | changes)
        with pytest.raises(error, match=reason):
            LatentsSource(copy, ("image",))


def test_other_modalities_and_unfinished_folders_are_refused(copy):
    with pytest.raises(ConfigError, match="holds latents of image, and none of video"):
        LatentsSource(copy, ("video",))
    (copy / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="its encoding is not finished"):
        LatentsSource(copy, ("image",))
    with pytest.raises(ConfigError, match=r"has no manifest.json; write it with `selfflow encode`"):
        LatentsSource(copy / "nowhere", ("image",))


def test_it_is_carried_to_workers_and_stays_small(encoded):
    source = LatentsSource(encoded, ("image",))
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(*(each.read(20).parts["image"].data.mean for each in (again, source)))
    assert source.manifest.shards == []
    assert len(pickle.dumps(source)) < 20_000


def test_the_fingerprint_is_of_the_content(encoded, copy, tmp_path):
    first = LatentsSource(encoded, ("image",)).fingerprint()
    assert LatentsSource(copy, ("image",)).fingerprint() == first
    make(images_job(seed=4), tmp_path / "other")
    assert LatentsSource(tmp_path / "other", ("image",)).fingerprint() != first


def test_a_url_is_read_through_a_cache(copy, tmp_path):
    config = LatentsConfig(path=f"file://{copy}", cache=str(tmp_path / "cache"))
    source = build_source(config, "image", tmp_path)
    assert usable(source)[0] == {f"k{index}" for index in range(21)}
    assert len(list((tmp_path / "cache").rglob("*.mds"))) == 3


def test_several_folders_are_joined_and_media_are_not_mixed_in(encoded, tmp_path):
    make(images_job(source=Images(5)), tmp_path / "more")
    parts = {
        "a": LatentsConfig(path=str(encoded), repeat=2),
        "b": LatentsConfig(path="more"),
    }
    config = ConcatConfig(parts=parts)
    assert config.problems() == []
    assert config.holds_latents
    source = build_source(config, "image", tmp_path)
    assert len(source) == 47
    assert source.read(46).key == "b/k4"
    assert [manifest.samples for manifest in stored_manifests(source)] == [21, 5]
    mixed = ConcatConfig(parts=parts | {"c": SyntheticConfig()})
    assert mixed.problems() == ["parts: a, b hold latents and the others media; one source has one of the two"]
    wrong = LatentsConfig(path="x", cache_limit="much", shuffle_blocks=0)
    assert [line.partition(":")[0] for line in wrong.problems()] == ["cache_limit", "shuffle_blocks"]
