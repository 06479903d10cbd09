"""Parquet files as other programs write them: types, nesting, gaps, and odd files among good ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.sources.build import build_source
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.parquet import ParquetConfig, ParquetSource
from modalities.data.sources.selection import Selection

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NO_CAPTIONS = CaptionRule("none")
MEDIA = [b"picture 0", b"picture 1", b"picture 2"]


def write(path: Path, captions=("a", "b", "c"), **columns) -> Path:
    given = {"image": MEDIA[: len(captions or MEDIA)], "caption": captions} | columns
    pq.write_table(pa.table({name: column for name, column in given.items() if column is not None}), path)
    return path


def records(source: ParquetSource) -> list[Record]:
    return [source.read(index) for index in range(len(source))]


def captions(path: Path, *names: str, **settings) -> list[tuple[str, ...]]:
    return [one.captions for one in records(ParquetSource([path], "image", captions=CaptionRule(fields=names)))]


def test_a_file_without_rows_is_refused_and_costs_nothing_among_others(tmp_path):
    schema = pa.schema({"image": pa.large_binary(), "caption": pa.large_string()})
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    with pq.ParquetWriter(tmp_path / "none.parquet", schema):
        pass  # not even a row group
    for name in ("empty.parquet", "none.parquet"):
        with pytest.raises(ConfigError, match=rf"{name}: no rows"):
            ParquetSource([tmp_path / name], "image")
        with pytest.raises(ConfigError, match=rf"{name}: no rows"):
            ParquetSource([tmp_path / name], "image", selection=Selection(where={"caption": "a"}))
    write(tmp_path / "full.parquet")
    names = ("empty", "full", "none")
    source = ParquetSource([tmp_path / f"{name}.parquet" for name in names], "image")
    assert [one.media for one in records(source)] == MEDIA
    assert source.account().left_out == {"empty file|": 2}
    with pytest.raises(ConfigError, match=r"none\.parquet and 1 more: no rows"):
        ParquetSource([tmp_path / "none.parquet", tmp_path / "empty.parquet"], "image")


@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_file_costs_its_own_place_wherever_it_stands(tmp_path, place):
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write(paths[1 - place], captions=None, alt=["a", "b", "c"], label=["x", "y", "x"])
    paths[place].write_bytes(b"PAR1PAR1")
    config = ParquetConfig(path=str(tmp_path), caption_fields=["caption", "alt"], label_field="label")
    source = build_source(config, "image", tmp_path)
    assert (len(source), source.labels()) == (4, ["x", "y"])
    bad = 0 if place == 0 else 3
    with pytest.raises(DataError, match=rf"{place}\.parquet: not a Parquet file"):
        source.read(bad)
    assert [source.read(index).captions for index in range(4) if index != bad] == [("a",), ("b",), ("c",)]
    assert source.account().left_out == {"damaged file|": 1}


def test_a_file_of_other_columns_costs_its_own_place(tmp_path):
    paths = [write(tmp_path / f"{name}.parquet") for name in "abc"]
    write(paths[0], captions=["a"], image=None)
    write(paths[2], captions=["a"], image=["text"])
    source = ParquetSource(paths, "image")
    assert len(source) == 5
    with pytest.raises(DataError, match=r"column 'image': .*a\.parquet has no such column; it has caption"):
        source.read(0)
    with pytest.raises(DataError, match=r"column 'image' of .*c\.parquet holds string"):
        source.read(4)
    assert [source.read(index).media for index in (1, 2, 3)] == MEDIA
    assert source.account().left_out == {"unfit file|": 2}
    with pytest.raises(ConfigError, match=r"a\.parquet has no such column"):
        ParquetSource([paths[0], paths[2]], "image")


def test_files_with_different_caption_columns(tmp_path):
    write(tmp_path / "a.parquet", captions=None, text=["a", "b", "c"])
    write(tmp_path / "b.parquet", captions=["d", "e", "f"])
    rule = CaptionRule(fields=("caption", "text"))
    source = ParquetSource([tmp_path / "a.parquet", tmp_path / "b.parquet"], "image", captions=rule)
    assert [one.captions[0] for one in records(source)] == list("abcdef")


def test_two_columns_of_one_name_are_refused_by_name(tmp_path):
    path = tmp_path / "twice.parquet"
    table = pa.Table.from_arrays([pa.array(MEDIA), pa.array("abc"), pa.array("def")], ["image", "caption", "caption"])
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match=r"column 'caption': .*twice\.parquet has 2 columns of that name"):
        ParquetSource([path], "image")
    for settings in ({"selection": Selection(where={"caption": "a"})}, {"label": "caption"}):
        with pytest.raises(ConfigError, match=r"column 'caption': .* 2 columns"):
            ParquetSource([path], "image", captions=NO_CAPTIONS, **settings)
    source = ParquetSource([path], "image", captions=NO_CAPTIONS)  # that column is not read
    assert [one.media for one in records(source)] == MEDIA


def test_json_in_columns(tmp_path):
    lists = ['["a 0", "b 0 longer"]', "[a cat] on a mat", '["x", null]']
    path = write(tmp_path / "text.parquet", lists)
    assert captions(path, "caption") == [("a 0", "b 0 longer"), ("[a cat] on a mat",), ("x",)]
    objects = [json.dumps({"en": f"a {number}", "n": number}) for number in range(3)]
    path = write(tmp_path / "objects.parquet", objects)
    assert captions(path, "caption.en") == [("a 0",), ("a 1",), ("a 2",)]


def test_a_column_of_the_type_json(tmp_path):
    if not hasattr(pa, "json_"):
        pytest.skip("this pyarrow has no JSON type")
    texts = pa.array(['["a", "b"]', '"a text"', '{"en": "c"}'])
    path = write(tmp_path / "json.parquet", texts.cast(pa.json_()))
    assert pq.ParquetFile(path).schema.column(1).logical_type.type == "JSON"
    assert captions(path, "caption.en", "caption")[:2] == [("a", "b"), ("a text",)]
    assert captions(path, "caption.en", "caption")[2] == ("c",)
    lists = pa.array([['"a"', '"b"'], ["null"], None]).cast(pa.list_(pa.json_()))
    path = write(tmp_path / "lists.parquet", lists, other=["x", "y", "z"])
    assert captions(path, "caption", "other") == [("a", "b", "x"), ("y",), ("z",)]
    labels = pa.array(['"cat"', "3", '"dog"']).cast(pa.json_())
    path = write(tmp_path / "labels.parquet", label=labels, texts=['["x"]'] * 3)
    source = ParquetSource([path], "image", label="label", selection=Selection(where={"label": "cat"}))
    assert ([one.label for one in records(source)], source.labels()) == (["cat"], ["cat"])
    source = ParquetSource([path], "image", label="texts")  # of a plain text, the class is the text
    assert ({one.label for one in records(source)}, source.labels()) == ({'["x"]'}, ['["x"]'])


def test_classes_of_whole_numbers_with_a_gap(tmp_path):
    path = write(tmp_path / "gap.parquet", label=pa.array([0.0, None, 1.0]))
    source = ParquetSource([path], "image", label="label")
    assert ([one.label for one in records(source)], source.labels()) == (["0", None, "1"], ["0", "1"])
    path = write(tmp_path / "nan.parquet", label=pa.array([0.0, float("nan"), 2.5]))
    source = ParquetSource([path], "image", label="label", selection=Selection(where={"label": "0"}))
    assert ([one.label for one in records(source)], source.labels()) == (["0"], ["0"])
    source = ParquetSource([path], "image", label="label")
    assert ([one.label for one in records(source)], source.labels()) == (["0", None, "2.5"], ["0", "2.5"])
    labeled = ParquetSource([path], "image", label="label", captions=CaptionRule("label"))
    with pytest.raises(DataError, match="no caption; needed: a label"):
        labeled.read(1)


def test_captions_that_are_nan_are_missing(tmp_path):
    path = write(tmp_path / "nan.parquet", pa.array([float("nan")] * 3), text=["a", "b", "c"])
    assert captions(path, "caption", "text") == [("a",), ("b",), ("c",)]


CHAT = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "a cat"}]
NESTED = [
    ([{"en": "a", "de": "b"}] * 3, "caption.en", ("a",)),
    ([CHAT] * 3, "caption.1.content", ("a cat",)),
    ([CHAT] * 3, "caption.content", ("what", "a cat")),
    ([{"inner": {"texts": ["x", "y"]}}] * 3, "caption.inner.texts", ("x", "y")),
    ([{"inner": {"texts": ["x", "y"]}}] * 3, "caption.inner.texts.1", ("y",)),
]


@pytest.mark.parametrize(("column", "name", "expected"), NESTED)
def test_nested_captions(tmp_path, column, name, expected):
    path = write(tmp_path / "nested.parquet", column, other=["z"] * 3)
    assert captions(path, name) == [expected] * 3
    assert captions(path, "caption", "other") == [("z",)] * 3  # the one that fits is taken
    with pytest.raises(ConfigError, match=r"none of 3 rows.*expected a text.*name one of them, such as caption\."):
        ParquetSource([path], "image", captions=CaptionRule(fields=("caption",)))


def test_maps_nested_classes_and_filters(tmp_path):
    path = tmp_path / "nested.parquet"
    maps = pa.array([[("en", "a"), ("de", "b")]] * 3, pa.map_(pa.string(), pa.string()))
    write(path, maps, meta=[{"class": number % 2, "side": "left" if number else "right"} for number in range(3)])
    rule, chosen = CaptionRule(fields=("caption.en",)), Selection(where={"meta.side": "left"})
    source = ParquetSource([path], "image", label="meta.class", captions=rule, selection=chosen)
    assert [(one.captions, one.label) for one in records(source)] == [(("a",), "1"), (("a",), "0")]
    assert source.labels() == ["0", "1"]


def test_a_column_whose_own_name_has_dots(tmp_path):
    path = write(tmp_path / "dots.parquet", **{"caption.en": ["x", "y", "z"]})
    assert captions(path, "caption.en") == [("x",), ("y",), ("z",)]


def media_types() -> list:
    structs = [{"bytes": data, "path": f"x/{place}.JPG"} for place, data in enumerate(MEDIA)]
    audio = [{"bytes": data, "path": None, "sampling_rate": 8000} for data in MEDIA]
    kinds = [
        pa.array(MEDIA, pa.binary()),
        pa.array(MEDIA, pa.large_binary()),
        pa.array(MEDIA, pa.binary(9)),
        pa.array(MEDIA).dictionary_encode(),
        pa.array(structs),
        pa.array(audio),
        pa.array(structs, pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})),
    ]
    return kinds + ([pa.array(MEDIA, pa.binary_view())] if hasattr(pa, "binary_view") else [])


@pytest.mark.parametrize("column", media_types(), ids=lambda column: str(column.type)[:30])
def test_types_of_media(tmp_path, column):
    path = write(tmp_path / "media.parquet", image=column)
    found = records(ParquetSource([path], "image"))
    assert [one.media for one in found] == MEDIA
    assert {one.suffix for one in found} <= {"", ".jpg"}


def text_types() -> list:
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
    return kinds + ([pa.string_view()] if hasattr(pa, "string_view") else [])


@pytest.mark.parametrize("kind", text_types(), ids=str)
def test_types_of_texts_and_classes(tmp_path, kind):
    texts = pa.array(["a", None, "c"], pa.string())
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    path = write(tmp_path / "text.parquet", texts, label=texts)
    rule = CaptionRule(default="some")
    source = ParquetSource([path], "image", label="label", captions=rule, selection=Selection(where={"label": "a"}))
    assert [(one.captions, one.label) for one in records(source)] == [(("a",), "a")]
    source = ParquetSource([path], "image", label="label", captions=rule)
    assert [one.captions for one in records(source)] == [("a",), ("some",), ("c",)]
    assert source.labels() == ["a", "c"]


@pytest.mark.parametrize("kind", ["large_list", "list_view", "fixed"])
def test_types_of_lists(tmp_path, kind):
    if kind == "list_view":
        pytest.importorskip("pyarrow", minversion="24.0")  # reads them from Parquet
    make = {"large_list": pa.large_list, "list_view": pa.list_view, "fixed": lambda inner: pa.list_(inner, 2)}[kind]
    path = write(tmp_path / "lists.parquet", pa.array([["a", "b"]] * 3, make(pa.string())))
    assert captions(path, "caption") == [("a", "b")] * 3


def test_a_column_that_python_cannot_hold_is_that_records_error(tmp_path):
    times = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    path = write(tmp_path / "times.parquet", label=times)
    source = ParquetSource([path], "image", captions=CaptionRule(fields=("caption", "label")))
    with pytest.raises(DataError, match="row group 0 row 1: column 'label' cannot be read"):
        source.read(1)
    with pytest.raises(DataError, match=r"times\.parquet: not a Parquet file, or damaged"):
        ParquetSource([path], "image", label="label")
