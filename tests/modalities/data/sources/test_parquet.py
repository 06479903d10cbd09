import pickle
import sys

import pytest

from core.errors import ConfigError, DataError
from modalities.data.order import Order
from modalities.data.sources.build import build_source
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.parquet import ParquetConfig, ParquetSource
from modalities.data.sources.selection import Selection

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 40


def columns() -> dict:
    return {
        "image": [b"image %d" % i for i in range(COUNT)],
        "caption": [None if i == 7 else f"caption {i}" for i in range(COUNT)],
        "more": [[f"one {i}", f"two {i}"] for i in range(COUNT)],
        "style": ["noto" if i % 4 else "other" for i in range(COUNT)],
        "base": [f"base {i // 2}" for i in range(COUNT)],
        "label": [i % 3 for i in range(COUNT)],
    }


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(columns()), path, row_group_size=16)
    return path


def test_rows_in_any_order(table):
    source = ParquetSource([table], "image", label="label")
    assert len(source) == COUNT
    for index in (39, 0, 16, 15, 32):
        record = source.read(index)
        assert record.media == b"image %d" % index
        assert record.captions == (f"caption {index}",)
        assert record.label == str(index % 3)
        assert "data.parquet" in record.origin
    assert source.labels() == ["0", "1", "2"]
    assert len({source.read(index).key for index in range(8, COUNT)}) == COUNT - 8


def test_several_caption_columns_lists_and_a_default(table):
    both = ParquetSource([table], "image", captions=CaptionRule(fields=("caption", "more")))
    assert both.read(3).captions == ("caption 3", "one 3", "two 3")
    assert both.read(7).captions == ("one 7", "two 7")
    with pytest.raises(DataError, match=r"data\.parquet row group 0 row 7: no caption"):
        ParquetSource([table], "image").read(7)
    assert ParquetSource([table], "image", captions=CaptionRule(default="thing")).read(7).captions == ("thing",)
    assert ParquetSource([table], "image", "label", CaptionRule(mode="label")).read(5).captions == ("2",)


def test_structs_as_hugging_face_writes_them(tmp_path):
    path = tmp_path / "hf.parquet"
    media = [{"bytes": b"a", "path": "x/one.PNG"}, {"bytes": b"b", "path": None}, {"bytes": None, "path": "gone.png"}]
    pq.write_table(pa.table({"picture": media, "caption": ["1", "2", "3"]}), path)
    source = ParquetSource([path], "picture")
    assert (source.read(0).media, source.read(0).suffix) == (b"a", ".png")
    assert (source.read(1).media, source.read(1).suffix) == (b"b", "")
    with pytest.raises(DataError, match="row 2: column 'picture' holds no bytes"):
        source.read(2)


def test_where_and_holdout_by_a_column(table):
    noto = ParquetSource([table], "image", selection=Selection(where={"style": "noto"}))
    assert len(noto) == 30
    assert noto.read(0).media == b"image 1"
    sides = {}
    for split in ("train", "test"):
        selection = Selection(split=split, holdout=0.4, holdout_key="base")
        source = ParquetSource([table], "image", captions=CaptionRule(mode="none"), selection=selection)
        sides[split] = {int(source.read(index).media.split()[1]) // 2 for index in range(len(source))}
        assert len(source) == 2 * len(sides[split])  # both rows of a base lie on one side
    assert not sides["train"] & sides["test"]
    assert len(sides["train"] | sides["test"]) == COUNT // 2


def test_several_files_and_pickling(table, tmp_path):
    other = tmp_path / "sub" / "data.parquet"
    other.parent.mkdir()
    pq.write_table(pa.table(columns()), other)
    source = ParquetSource([table, other], "image")
    assert len(source) == 2 * COUNT
    assert source.read(COUNT + 3).media == b"image 3"
    assert source.read(COUNT + 3).key != source.read(3).key  # equal file names, other files
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(17) == source.read(17)
    assert len(pickle.dumps(source)) < 20_000  # no cached row group travels to the workers
    assert source.fingerprint() == copy.fingerprint()
    assert source.fingerprint() != ParquetSource([other, table], "image").fingerprint()


def test_the_cache_is_bounded(table, monkeypatch):
    monkeypatch.setattr("modalities.data.sources.parquet.CACHE_BYTES", 1)
    for blocks, kept in ((1, 2), (16, 3)):  # one more than the order reads at a time
        source = ParquetSource([table], "image", shuffle_blocks=blocks)
        for index in (0, 20, 39, 0):
            assert source.read(index).media == b"image %d" % index
        assert len(source._cache) == kept


def test_wrong_columns_name_those_there_are(table):
    with pytest.raises(ConfigError, match=r"column 'imag'.*has image, caption.*Did you mean: 'image'"):
        ParquetSource([table], "imag")
    with pytest.raises(ConfigError, match=r"column 'lable'.*Did you mean: 'label'"):
        ParquetSource([table], "image", "lable")
    with pytest.raises(ConfigError, match=r"caption_fields.*captain.*it has image.*Did you mean: 'caption'"):
        ParquetSource([table], "image", captions=CaptionRule(fields=("captain",)))
    with pytest.raises(ConfigError, match=r"column 'stile'.*Did you mean: 'style'"):
        ParquetSource([table], "image", selection=Selection(where={"stile": "noto"}))
    with pytest.raises(ConfigError, match=r"media_field: column 'caption'.*holds string"):
        ParquetSource([table], "caption")
    with pytest.raises(ConfigError, match="none of 40 rows is left by style == none"):
        ParquetSource([table], "image", selection=Selection(where={"style": "none"}))


def test_captions_that_are_all_empty_are_refused(tmp_path):
    path = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"image": [b"a", b"b"], "caption": pa.array([None, None], pa.string())}), path)
    with pytest.raises(ConfigError, match=r"none of 2 rows.*no caption"):
        ParquetSource([path], "image")


def test_damaged_files(table, tmp_path):
    data = table.read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: not a Parquet file, or damaged"):
        ParquetSource([cut], "image")
    source = ParquetSource([table], "image", captions=CaptionRule(mode="none"))
    start = pq.ParquetFile(table).metadata.row_group(2).column(0).data_page_offset
    table.write_bytes(data[:start] + b"\xff" * 60 + data[start + 60 :])
    with pytest.raises(DataError, match=r"data\.parquet: .*damaged"):
        source.read(39)
    assert source.read(0).media == b"image 0"


def test_of_several_files_a_damaged_one_costs_a_record_that_says_so(table, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(table.read_bytes())
    (tmp_path / "b.parquet").write_bytes(b"")
    for selection in (Selection(), Selection(where={"style": "noto"})):
        source = ParquetSource([tmp_path / "a.parquet", tmp_path / "b.parquet", table], "image", selection=selection)
        count = 30 if selection.where else COUNT
        assert len(source) == 2 * count + 1
        with pytest.raises(DataError, match=r"b\.parquet: not a Parquet file, or damaged"):
            source.read(count)
        assert source.read(count - 1).media == source.read(2 * count).media
    with pytest.raises(DataError, match=r"b\.parquet: not a Parquet file"):
        ParquetSource([tmp_path / "b.parquet"], "image")


def test_row_groups_are_the_blocks_of_the_order(table, tmp_path):
    (tmp_path / "other.parquet").write_bytes(table.read_bytes())
    paths, rule = [table, tmp_path / "other.parquet"], CaptionRule("none")
    source = ParquetSource(paths, "image", captions=rule, shuffle_blocks=2)
    assert source.blocks().sizes.tolist() == [16, 16, 8] * 2
    assert source.blocks().window == 2
    order, groups = Order(source, 0, "image"), []
    for position in range(len(source)):
        source.read(order.at(position)[1])
        groups.append(len(source._cache))
    assert max(groups) <= 6
    noto = ParquetSource([table], "image", selection=Selection(where={"style": "noto"}))
    assert noto.blocks().sizes.tolist() == [12, 12, 6]
    assert [noto.read(index).media for index in (11, 12)] == [b"image 15", b"image 17"]


def test_a_configuration_says_how_many_row_groups_are_read_at_a_time(table):
    config = ParquetConfig(path=str(table), media_field="image", captions="none", shuffle_blocks=2)
    assert build_source(config, "image", table.parent).blocks().window == 2


def test_row_groups_too_large_to_keep_are_refused(table, monkeypatch):
    monkeypatch.setattr("modalities.data.sources.parquet.WINDOW_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"shuffle_blocks: 16 row groups .* set shuffle_blocks=\d, or write"):
        ParquetSource([table], "image")
    assert ParquetSource([table], "image", shuffle_blocks=1).read(39).media == b"image 39"


def test_a_row_costs_no_memory_of_its_own(tmp_path):
    path = tmp_path / "long.parquet"
    rows = 50_000
    pq.write_table(pa.table({"image": [b"x"] * rows, "caption": ["y"] * rows}), path, row_group_size=5000)
    assert len(pickle.dumps(ParquetSource([path], "image"))) < 3000
    assert len(ParquetSource([path], "image")) == rows


def test_without_pyarrow(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"kind: parquet needs the package pyarrow, .*'\.\[data\]'\. All"):
        ParquetSource([tmp_path / "a.parquet"], "image")
