"""Records from MDS shards: columns, captions, classes, hold-out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.data.order import Order
from modalities.data.sources.build import build_source
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.mds_source import MdsConfig, MdsSource
from modalities.data.sources.selection import Selection, held_out_rows
from tests.modalities.data.sets import image
from tests.modalities.data.sources.shards import streaming, write_mds


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_records_have_media_captions_class_and_a_key_of_their_own(tmp_path):
    source = MdsSource(write_mds(tmp_path / "data"), "image", "label")
    records = [source.read(index) for index in range(len(source))]
    assert [record.media for record in records] == [image(number) for number in range(40)]
    assert [record.captions for record in records] == [(f"number {number}",) for number in range(40)]
    assert [record.label for record in records] == [str(number % 3) for number in range(40)]
    assert len({record.key for record in records}) == 40
    assert records[0].key == "shard.00000.mds:0"
    assert records[0].origin == f"{tmp_path}/data/shard.00000.mds:0"
    assert source.labels() == ["0", "1", "2"]
    for path in (tmp_path / "data").glob("*.mds"):
        path.unlink()
    assert source.labels() == ["0", "1", "2"]  # they were noted
    assert MdsSource(write_mds(tmp_path / "more"), "image").labels() == []


def test_classes_are_not_noted_while_a_shard_cannot_be_read(tmp_path):
    source = MdsSource(write_mds(tmp_path / "data"), "image", "label", CaptionRule("none"))
    shard = tmp_path / "data" / "shard.00001.mds"
    data = shard.read_bytes()
    shard.unlink()
    assert source.labels() == ["0", "1", "2"]  # of the other shards
    assert not list((tmp_path / "home").rglob("*.json"))
    shard.write_bytes(data)
    assert MdsSource(tmp_path / "data", "image", "label").labels() == ["0", "1", "2"]
    assert len(list((tmp_path / "home").rglob("*.json"))) == 1


def test_lists_of_captions_and_stored_images(tmp_path):
    columns = {"jpg": "jpeg", "texts": "str", "more": "json"}
    jpeg = write_jpeg(tmp_path / "a.jpg")
    with streaming.MDSWriter(out=str(tmp_path / "data"), columns=columns) as writer:
        for texts in ('["one", "two"]', "[not a list", "plain"):
            writer.write({"jpg": jpeg, "texts": texts, "more": ["three"]})
    source = MdsSource(tmp_path / "data", "jpg", captions=CaptionRule(fields=("texts", "more")))
    assert [source.read(index).captions for index in range(3)] == [
        ("one", "two", "three"),
        ("[not a list", "three"),
        ("plain", "three"),
    ]
    assert source.read(0).media == (tmp_path / "a.jpg").read_bytes()  # never decoded and encoded again


def write_jpeg(path: Path):
    from PIL import Image

    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)
    return Image.open(path)


def test_both_sides_of_a_hold_out_are_all_records(tmp_path):
    folder = write_mds(tmp_path / "data")
    sides = {
        split: MdsSource(folder, "image", selection=Selection(split=split, holdout=0.3)) for split in ("train", "test")
    }
    captions = {split: [source.read(i).captions[0] for i in range(len(source))] for split, source in sides.items()}
    assert not set(captions["train"]) & set(captions["test"])
    assert len(captions["train"]) + len(captions["test"]) == 40
    assert 5 <= len(captions["test"]) <= 19
    for source in sides.values():
        order = Order(source, 0, "image")
        assert sorted(order.at(position)[1] for position in range(len(source))) == list(range(len(source)))
    assert sides["train"].fingerprint() != sides["test"].fingerprint()
    with pytest.raises(ConfigError, match="where, holdout_key: style"):
        MdsSource(folder, "image", selection=Selection(where={"style": "x"}))


def test_a_hold_out_takes_its_share_and_is_a_fixed_function():
    rows = np.concatenate([held_out_rows(f"shard.{i}", 1000, 0.1) for i in range(100)])
    assert abs(rows.mean() - 0.1) < 5 * np.sqrt(0.09 / 1e5)
    assert (
        held_out_rows("shard.0", 50, 0.1).nonzero()[0].tolist()
        == held_out_rows("shard.0", 999, 0.1)[:50].nonzero()[0].tolist()
    )
    assert not held_out_rows("x", 1000, 0.0).any()


def test_wrong_columns_name_those_there_are(tmp_path):
    folder = write_mds(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"column 'imag'.*has caption, image, label.*Did you mean: 'image'"):
        MdsSource(folder, "imag")
    with pytest.raises(ConfigError, match=r"column 'lable'.*Did you mean: 'label'"):
        MdsSource(folder, "image", "lable")
    with pytest.raises(ConfigError, match=r"caption_fields.*captain.*Did you mean: 'caption'"):
        MdsSource(folder, "image", captions=CaptionRule(fields=("captain",)))
    with pytest.raises(ConfigError, match=r"media_field: column 'caption' .* is stored as str"):
        MdsSource(folder, "caption", captions=CaptionRule("none"))
    with pytest.raises(ConfigError, match=r"cache_limit: 6,144 bytes; shuffle_blocks 16"):
        MdsSource(folder, "image", cache=tmp_path / "cache", cache_limit="6kb")


def test_a_configuration_builds_it(tmp_path):
    write_mds(tmp_path / "data")
    settings = {"path": "data", "label_field": "label", "cache": "cache", "cache_limit": "1mb"}
    source = build_source(MdsConfig(**settings, shuffle_blocks=2), "image", tmp_path)
    assert (len(source), source.read(7).label, source.blocks().window) == (40, "1", 2)
    assert (tmp_path / "cache" / ".lock").exists()
    url = build_source(MdsConfig(path=(tmp_path / "data").as_uri(), cache="cache"), "image", tmp_path)
    assert url.read(7).captions == ("number 7",)
    assert "is not a size" in "".join(MdsConfig(path="x", cache_limit="big").problems())


def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    folder = write_mds(tmp_path / "data")
    for path in folder.glob("*.mds"):
        path.write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"none of 32 samples of .* can be used; the first: .*shard\.00000\.mds: 0 bytes"
    ):
        MdsSource(folder, "image")
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": []}))
    with pytest.raises(DataError, match="with 0 shards"):
        MdsSource(folder, "image")


def test_dotted_names_and_whole_numbers_with_gaps(tmp_path):
    columns = {"image": "bytes", "meta": "json", "text": "str", "label": "float32"}
    rows = [({"en": "a", "size": 3}, '{"en": "x"}', 0.0), ({"en": None}, '{"en": "y"}', float("nan")), ({}, "", 2.0)]
    with streaming.MDSWriter(out=str(tmp_path / "data"), columns=columns) as writer:
        for number, (meta, text, label) in enumerate(rows):
            writer.write({"image": image(number), "meta": meta, "text": text, "label": np.float32(label)})
    rule = CaptionRule(fields=("meta.en", "text.en"), default="some")
    source = MdsSource(tmp_path / "data", "image", "label", rule)
    records = [source.read(index) for index in range(3)]
    assert [record.captions for record in records] == [("a", "x"), ("y",), ("some",)]
    assert [record.label for record in records] == ["0", None, "2"]
    assert source.labels() == ["0", "2"]
    assert MdsSource(tmp_path / "data", "image", "meta.size", rule).read(0).label == "3"
    with pytest.raises(ConfigError, match=r"expected a text .* name one of them, such as meta\.en"):
        MdsSource(tmp_path / "data", "image", captions=CaptionRule(fields=("meta",)))
    with pytest.raises(ConfigError, match=r"has none of the columns other\.en"):
        MdsSource(tmp_path / "data", "image", captions=CaptionRule(fields=("other.en",)))
