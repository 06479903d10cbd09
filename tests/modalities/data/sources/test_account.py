"""What sources leave out is counted and named, by every kind of source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modalities.data.sources.account import Account
from modalities.data.sources.build import MEDIA_SOURCES, build_source
from modalities.data.sources.concat import ConcatSource
from modalities.data.sources.parquet import ParquetConfig
from modalities.data.sources.selection import Selection
from modalities.synthetic.draw import SyntheticSource
from tests.modalities.data.sets import KINDS, image, open_set, write_set

SYSTEM = ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini")


def test_a_line_counts_and_the_rarest_are_summed_up():
    account = Account()
    for count, reason in ((120, ".avif (no decoder here)"), (3, "broken link|"), (1, "hidden file|"), (1, ".md")):
        account.leave(reason, "one", count)
    account.follow("folder|")
    account.follow("folder|")
    assert account.line() == (
        "left out: 120 .avif (no decoder here), 3 broken links, 1 hidden file, 1 .md; through links: 2 folders"
    )
    assert account.line(limit=2) == (
        "left out: 120 .avif (no decoder here), 3 broken links, 2 of 2 other kinds; through links: 2 folders"
    )
    assert account.lines()[1] == "left out: 3 broken links, such as one"
    assert Account.from_plain(account.to_plain()) == account
    assert Account().line() == ""


def test_what_is_told_apart_has_an_end():
    account = Account()
    for number in range(1000):
        account.leave(f".{number} (unknown)")
    assert len(account.left_out) < 100
    assert account.left_out.total() == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_and_system_files_are_no_records_in_any_kind(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = write_set(kind, tmp_path / "set")
    before = open_set(config)
    assert before.account().line() == ""
    for folder in ("@eaDir", "__MACOSX", ".thumbnails"):
        (tmp_path / "set" / folder).mkdir()
        (tmp_path / "set" / folder / "00.png").write_bytes(image(0))
    suffix = {"webdataset": ".tar", "parquet": ".parquet"}.get(kind, ".png")
    for name in ("Thumbs.db", "._00.txt", f"._part-0{suffix}", f".hidden{suffix}"):
        (tmp_path / "set" / name).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    after = open_set(config)
    assert len(after) == len(before) == 40
    assert after.labels() == before.labels()
    assert after.fingerprint() == before.fingerprint()
    if kind != "mds":  # whose index names its files
        assert after.account().left_out == {"hidden or system file|": 4, "hidden or system folder|": 3}
    wild = {"webdataset": "**/*.tar", "parquet": "**/*.parquet"}.get(kind)
    if wild:
        (tmp_path / "set" / "__MACOSX" / f"part-0{suffix}").write_bytes(b"\0\5\26\7")
        source = build_source(MEDIA_SOURCES[kind](path=f"set/{wild}"), "image", tmp_path)
        assert len(source) == 40
        assert source.account().left_out == {"hidden or system file|": 3}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mds"])
def test_records_outside_a_selection_are_counted(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = write_set(kind, tmp_path / "set")
    config = replace(config, split="test", holdout=0.3)
    source = open_set(config)
    assert source.account().left_out.total() == 40 - len(source) > 0
    assert "(outside split test of a hold-out of 0.3)" in source.account().line()


def test_a_concat_counts_its_parts_once(tmp_path):
    config = write_set("folder", tmp_path / "set")
    (tmp_path / "set" / "clip.mp4").write_bytes(b"video")
    source = ConcatSource({"a": open_set(config), "b": SyntheticSource("image", count=3)}, {"a": 3})
    assert source.account().left_out == {".mp4 (video)": 1}


def test_files_of_a_folder_of_tables_that_are_none_are_named(tmp_path):
    config = write_set("parquet", tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text("words")
    (tmp_path / "set" / "LICENSE").write_text("words")
    (tmp_path / "set" / "more").mkdir()
    (tmp_path / "set" / "gone.parquet").symlink_to("nowhere.parquet")
    line = open_set(config).account().line()
    for part in ("1 .md (not .parquet)", "1 file (not .parquet)", "1 broken link", "1 folder (a wildcard such as **/*"):
        assert part in line
    (tmp_path / "set" / "LICENSE.parquet").write_text("words")
    account = open_set(config).account()
    assert account.left_out["damaged file|"] == 1
    assert account.examples["damaged file|"] == "LICENSE.parquet"


def test_a_wildcard_under_a_folder_with_brackets(tmp_path):
    for name in ("[set]", "set*"):
        write_set("parquet", tmp_path / "in [x]" / name)
        for path, root in (
            (f"{name}/*.parquet", tmp_path / "in [x]"),
            (f"{tmp_path}/in [x]/{name}/part-?.parquet", tmp_path),
            ("part-[01].parquet", tmp_path / "in [x]" / name),
        ):
            assert len(build_source(ParquetConfig(path=path), "image", root)) == 40


def test_a_wildcard_takes_hidden_files_only_where_it_says_so(tmp_path):
    write_set("parquet", tmp_path / ".cache" / "set")
    for path, count in ((".cache/*/*.parquet", 40), (".*/set/*.parquet", 40), (".cache/**/part-1.parquet", 20)):
        assert len(build_source(ParquetConfig(path=path), "image", tmp_path)) == count


def test_the_suffix_of_a_table_may_be_written_in_capitals(tmp_path):
    config = write_set("parquet", tmp_path / "set")
    (tmp_path / "set" / "part-0.parquet").rename(tmp_path / "set" / "PART-0.PARQUET")
    assert len(open_set(config)) == 40


def test_records_of_shards_outside_the_split(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = write_set("mds", tmp_path / "set")
    config = replace(config, split="train", holdout=0.5)
    source = open_set(config)
    assert source.account().left_out == {"record| (outside split train of a hold-out of 0.5)": 40 - len(source)}
    assert Selection().describe() == "everything"
