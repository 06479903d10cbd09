import tarfile
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.errors import ConfigError
from core.kinds import kinds
from core.training.config import to_plain, validated
from modalities.data.order import Order
from modalities.data.sources.build import SOURCES, ConcatConfig, build_source
from modalities.data.sources.concat import ConcatSource
from modalities.data.sources.config import SourceConfig
from modalities.data.sources.folder import FolderConfig
from modalities.data.sources.parquet import ParquetConfig
from modalities.data.sources.webdataset import WebdatasetConfig
from modalities.synthetic.config import SyntheticConfig
from modalities.synthetic.draw import SyntheticSource


@pytest.fixture
def media(tmp_path):
    for name, caption in (("a", "first"), ("b", "second"), ("c", "third")):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            tar.add(tmp_path / "a.png", "x.png")
            tar.add(tmp_path / "a.txt", "x.txt")
    return tmp_path


@dataclass
class Stream:
    data: SourceConfig = field(default_factory=SyntheticConfig, metadata=kinds(SOURCES))


def made(settings: dict) -> SourceConfig:
    """The source of a section of a file."""
    return validated(Stream, {"data": settings}).data


def problems(**settings) -> str:
    """What is said of the settings of a source in a file."""
    try:
        made(settings)
    except ConfigError as error:
        return str(error)
    return ""


def test_the_default_builds_synthetic_records_of_each_modality():
    for modality in ("image", "video", "audio"):
        source = build_source(SyntheticConfig(), modality, Path())
        assert len(source) == 100_000
        assert source.read(0).captions


def test_paths_are_relative_to_the_root_and_may_hold_wildcards(media):
    assert len(build_source(FolderConfig(path="."), "image", media)) == 3
    assert len(build_source(FolderConfig(path=str(media)), "image", Path("elsewhere"))) == 3
    for path, count in (("shard-*.tar", 2), ("shard-1.tar", 1), (".", 2)):
        assert len(build_source(WebdatasetConfig(path=path), "image", media)) == count
    with pytest.raises(ConfigError, match=r"does not exist .*holds: a\.png.*Did you mean: 'shard-1\.tar'"):
        build_source(WebdatasetConfig(path="shard_1.tar"), "image", media)
    with pytest.raises(ConfigError, match=r"holds no \.parquet file \(found: a\.png"):
        build_source(ParquetConfig(path="."), "image", media)


def test_concat_repeats_and_keeps_keys_unique(media):
    parts = {
        "files": FolderConfig(path="."),
        "shards": WebdatasetConfig(path="shard-0.tar", repeat=3),
    }
    source = build_source(ConcatConfig(parts=parts), "image", media)
    records = [source.read(index) for index in range(len(source))]
    assert [record.key for record in records] == [
        "files/a.png",
        "files/b.png",
        "files/c.png",
        "shards/shard-0/x",
        "shards/shard-0/x#2",
        "shards/shard-0/x#3",
    ]
    assert [record.captions[0] for record in records] == ["first", "second", "third", "first", "first", "first"]
    assert source.labels() == [media.name]
    with pytest.raises(IndexError):
        source.read(6)
    parts["shards"] = replace(parts["shards"], repeat=2)
    fewer = build_source(ConcatConfig(parts=parts), "image", media)
    assert fewer.fingerprint() != source.fingerprint()


def test_concat_passes_blocks_through_and_scatters_the_parts_that_have_none(media):
    for number in range(2, 6):
        (media / f"shard-{number}.tar").write_bytes((media / "shard-0.tar").read_bytes())
    parts = {
        "drawn": SyntheticConfig(count=50),
        "shards": WebdatasetConfig(path="shard-*.tar", repeat=2, shuffle_blocks=3),
    }
    source = build_source(ConcatConfig(parts=parts), "image", media)
    blocks = source.blocks()
    assert blocks.sizes[-12:].tolist() == [1] * 12  # six tars of one sample, twice
    assert (blocks.sizes.sum(), blocks.window, blocks.scattered) == (len(source), 3, ((0, 50),))
    order = Order(source, 0, "image")
    assert sorted(order.at(position)[1] for position in range(len(source))) == list(range(len(source)))
    nested = ConcatSource({"a": ConcatSource({"": SyntheticSource("image", count=3)}), "b": source})
    assert nested.blocks().scattered == ((0, 3), (3, 53))
    assert ConcatSource({"": SyntheticSource("image", count=3)}).blocks() is None


def test_repeat_without_concat(media):
    source = build_source(FolderConfig(path=".", repeat=2), "image", media)
    assert [source.read(index).key for index in (0, 2, 3, 5)] == ["a.png", "c.png", "a.png#2", "c.png#2"]


def test_a_configuration_goes_through_omegaconf():
    settings = {"kind": "concat", "parts": {"one": {"kind": "folder", "path": ".", "where": {"size": 3}}}}
    config = made(settings)
    assert isinstance(config, ConcatConfig)
    assert isinstance(config.parts["one"], FolderConfig)
    assert config.parts["one"].where == {"size": "3"}
    assert config.problems() == []
    assert made(to_plain(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "foldr", "path": "x"}, "kind: 'foldr' is not one of .* Did you mean: 'folder'"),
        ({"kind": "folder"}, "path: empty"),
        (
            {"kind": "folder", "path": "x", "members": "*.png"},
            "members: unknown key of kind 'folder'; .* It belongs to kind webdataset",
        ),
        (
            {"kind": "synthetic", "path": "x"},
            "path: unknown key of kind 'synthetic'; .* It belongs to kind folder, parquet",
        ),
        ({"kind": "folder", "path": "x", "captions": "lable"}, "captions: 'lable' .* Did you mean: 'label'"),
        ({"kind": "folder", "path": "x", "caption_fields": []}, "caption_fields: empty"),
        ({"kind": "parquet", "path": "x", "captions": "label"}, "label_field: empty"),
        ({"kind": "folder", "path": "x", "split": "tests", "holdout": 0.1}, "split: 'tests' .* Did you mean: 'test'"),
        ({"kind": "folder", "path": "x", "split": "test"}, "split: 'test' with holdout 0"),
        ({"kind": "folder", "path": "x", "holdout": 0.2}, "split: 'all' with holdout 0.2"),
        ({"kind": "folder", "path": "x", "holdout": 1.0, "split": "test"}, r"holdout: 1.0 must lie in \[0, 1\)"),
        ({"kind": "folder", "path": "x", "holdout_key": "base"}, "holdout_key: 'base' without a split"),
        ({"repeat": 0}, "repeat: 0"),
        ({"kind": "parquet", "path": "x", "shuffle_blocks": 0}, "shuffle_blocks: 0 must be at least 1"),
        ({"kind": "folder", "path": "x", "shuffle_blocks": 4}, "shuffle_blocks: unknown key of kind 'folder'"),
        ({"kind": "mds", "path": "x", "where": {"a": "b"}}, "where: unknown key of kind 'mds'"),
        ({"kind": "concat"}, "parts: empty"),
        ({"kind": "concat", "parts": {"a": {"kind": "folder"}}}, "parts.a.path: empty"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        made(settings)


def test_settings_without_fault_have_no_problems():
    assert problems() == ""
    assert problems(kind="folder", path="x", split="train", holdout=0.1) == ""
    assert problems(kind="parquet", path="x", where={"style": "noto"}, holdout_key="b", split="test", holdout=0.1) == ""


def test_every_setting_is_documented():
    for config in SOURCES.values():
        told = "".join(base.__doc__ for base in config.__mro__ if is_dataclass(base))
        for entry in fields(config):
            assert f"{entry.name}:" in told or f"{entry.name}," in told, (config, entry.name)


def test_each_kind_is_called_as_in_the_table():
    for kind, config in SOURCES.items():
        assert config().kind == kind


class _Reads(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.read(index).key


def test_sources_travel_to_the_workers_of_a_loader(media):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [b"1"] * 20, "caption": ["x"] * 20}), media / "t.parquet", row_group_size=5)
    parts = {
        "synthetic": SyntheticConfig(count=7),
        "folder": FolderConfig(path="."),
        "parquet": ParquetConfig(path="t.parquet"),
        "tar": WebdatasetConfig(path="*.tar"),
    }
    source = build_source(ConcatConfig(parts=parts), "image", media)
    here = [source.read(index).key for index in range(len(source))]
    loader = torch.utils.data.DataLoader(_Reads(source), batch_size=None, num_workers=2)
    assert list(loader) == here
    assert len(set(here)) == len(here) == 7 + 3 + 20 + 2
    assert ConcatSource({"": source}).read(0).key == here[0]


def test_the_choice_among_captions_is_checked():
    assert "caption_choice: 'long' is not one of longest, middle, first. Did you mean: 'longest'?" in problems(
        caption_choice="long"
    )
    assert problems(caption_choice="middle") == ""
    part = {"caption_choice": "first"}
    text = problems(kind="concat", caption_choice="longest", parts={"a": part})
    assert text == "data.parts.a.caption_choice: is not read there; set the one of the concat"
