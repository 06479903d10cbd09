"""Which members of a tar are media, which belong to them, and what becomes of the others."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.selection import Selection
from modalities.data.sources.webdataset import WebdatasetSource

NO_CAPTIONS = CaptionRule("none")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def write(path: Path, *members: tuple) -> Path:
    """A tar of (name, bytes), (name, "hard" or "sym", target)."""
    with tarfile.open(path, "w") as tar:
        for name, *content in members:
            info = tarfile.TarInfo(name)
            if len(content) == 2:
                info.type = tarfile.LNKTYPE if content[0] == "hard" else tarfile.SYMTYPE
                info.linkname = content[1]
                tar.addfile(info)
            else:
                info.size = len(content[0])
                tar.addfile(info, io.BytesIO(content[0]))
    return path


def opened(path: Path, **settings) -> WebdatasetSource:
    """Opened by a scan, and once more by the index that it left; both must say the same."""
    first = WebdatasetSource([path], "image", **settings)
    again = WebdatasetSource([path], "image", **settings)
    assert (first.fingerprint(), first.account()) == (again.fingerprint(), again.account())
    assert [again.read(index) for index in range(len(again))] == [first.read(index) for index in range(len(first))]
    return again


def captions(source: WebdatasetSource) -> list[tuple[str, ...]]:
    return [source.read(index).captions for index in range(len(source))]


def test_only_the_members_of_exactly_the_key_are_captions(tmp_path):
    source = opened(
        write(
            tmp_path / "a.tar",
            ("01.jpg", b"1"),
            ("01.txt", b"true caption"),
            ("01.ocr.txt", b"STOP SIGN"),
            ("02.ocr.json", b'{"caption": "no"}'),
            ("02.jpg", b"2"),
            ("02.json", b'{"caption": "yes"}'),
            ("03.txt", b"no image"),
        )
    )
    assert captions(source) == [("true caption",), ("yes",)]
    assert source.account().left_out == {
        ".ocr.txt (not KEY.txt)": 1,
        ".ocr.json (not KEY.json)": 1,
        ".txt (no image of that name)": 1,
    }
    assert source.account().examples[".ocr.txt (not KEY.txt)"] == "01.ocr.txt"


def test_a_text_of_the_mediums_own_name_goes_before_that_of_the_key(tmp_path):
    source = opened(
        write(
            tmp_path / "a.tar",
            ("x/1.left.jpg", b"1"),
            ("x/1.txt", b"of the key"),
            ("x/1.left.txt", b"of the image"),
            ("2.v1.jpg", b"2"),
            ("2.txt", b"of the key"),
        )
    )
    assert captions(source) == [("of the image",), ("of the key",)]
    assert [source.read(index).key for index in range(2)] == ["a/x/1", "a/2"]


def test_the_medium_of_exactly_the_key_goes_before_its_masks(tmp_path):
    path = write(tmp_path / "a.tar", ("1.mask.png", b"m"), ("1.jpg", b"1"), ("1.depth.png", b"d"), ("1.txt", b"x"))
    source = opened(path)
    assert [source.read(index).media for index in range(len(source))] == [b"1"]
    assert source.account().left_out == {".mask.png (beside KEY.jpg)": 1, ".depth.png (beside KEY.jpg)": 1}
    for names in (("1.jpg", "1.png"), ("1.a.jpg", "1.b.jpg")):
        with pytest.raises(DataError, match="has two media members"):
            WebdatasetSource([write(tmp_path / "b.tar", *((name, b"1") for name in names))], "image")


def test_links_are_records(tmp_path):
    path = write(
        tmp_path / "a.tar",
        ("early/0.jpg", "sym", "../a/1.jpg"),
        ("./a/1.jpg", b"one"),
        ("a/1.txt", b"first"),
        ("b/2.jpg", "hard", "a/1.jpg"),
        ("b/3.jpg", "sym", "2.jpg"),
        ("b/2.txt", "sym", "../a/1.txt"),
        ("c/4.jpg", "sym", "nowhere.jpg"),
        ("c/5.jpg", "sym", "6.jpg"),
        ("c/6.jpg", "sym", "5.jpg"),
        ("d", "sym", "a"),
    )
    source = opened(path, captions=CaptionRule(default="some"))
    assert [(record.key, record.media, record.captions) for record in map(source.read, range(len(source)))] == [
        ("a/early/0", b"one", ("some",)),
        ("a/a/1", b"one", ("first",)),
        ("a/b/2", b"one", ("first",)),
        ("a/b/3", b"one", ("some",)),
        ("a/d/1", b"one", ("first",)),
    ]
    assert source.account().linked == {"file|": 4, "folder|": 1}
    assert source.account().left_out == {"broken link|": 3}


def test_a_hard_link_of_tar_itself(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"one")
    (tmp_path / "2.jpg").hardlink_to(tmp_path / "1.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "1.jpg", "1.jpg")
        tar.add(tmp_path / "2.jpg", "2.jpg")
        assert tar.getmember("2.jpg").islnk()
    source = opened(tmp_path / "a.tar", captions=NO_CAPTIONS)
    assert [source.read(index).media for index in range(len(source))] == [b"one", b"one"]


def test_empty_sidecars_count_as_absent(tmp_path):
    path = write(
        tmp_path / "a.tar",
        ("0.jpg", b"0"),
        ("0.json", b'{"caption": "from json"}'),
        ("0.txt", b""),
        ("1.jpg", b"1"),
        ("1.txt", b" \n"),
        ("2.jpg", b"2"),
        ("2.json", b""),
        ("2.txt", b"two"),
        ("3.jpg", b"3"),
        ("3.json", b"{broken"),
        ("3.txt", b"three"),
        ("4.jpg", b"4"),
        ("4.json", b"{broken"),
    )
    source = WebdatasetSource([path], "image", captions=CaptionRule(default="some"))
    assert [source.read(index).captions[0] for index in range(4)] == ["from json", "some", "two", "three"]
    with pytest.raises(DataError, match=r"4\.json: not readable as JSON"):
        source.read(4)
    assert source.account().uncaptioned == 0
    plain = WebdatasetSource([path], "image")
    with pytest.raises(DataError, match=r"1\.jpg: no caption"):
        plain.read(1)


def test_hidden_and_system_members_are_no_records(tmp_path):
    names = ("._1.jpg", "x/._1.jpg", "__MACOSX/1.jpg", "a/@eaDir/1.jpg", ".cache/1.jpg", "Thumbs.db", ".DS_Store")
    path = write(tmp_path / "a.tar", *((name, b"no") for name in names), ("./1.jpg", b"yes"), ("../2.jpg", b"yes"))
    source = opened(path, captions=NO_CAPTIONS)
    assert [source.read(index).media for index in range(len(source))] == [b"yes", b"yes"]
    assert source.account().left_out == {"hidden or system file|": 7}


def test_names_go_together_in_capitals_and_in_every_unicode_form(tmp_path):
    path = write(
        tmp_path / "a.tar",
        ("A.JPG", b"1"),
        ("A.TXT", b"one"),
        ("caf\u00e9.jpg", b"2"),
        ("cafe\u0301.txt", b"two"),
    )
    source = opened(path)
    assert captions(source) == [("one",), ("two",)]
    assert source.account().line() == ""


def test_caption_and_class_members(tmp_path):
    path = write(
        tmp_path / "a.tar",
        ("0.jpg", b"0"),
        ("0.caption", b"zero\nnull"),
        ("0.cls", b"7\n"),
        ("1.cls", b"12"),
        ("1.jpg", b"1"),
        ("1.txt", b"one"),
        ("1.caption", b"other"),
        ("2.jpg", b"2"),
        ("2.json", json.dumps({"caption": "two", "cls": 3.0, "side": {"x": "left"}}).encode()),
    )
    source = opened(path, label="cls")
    assert captions(source) == [("zero", "null"), ("one",), ("two",)]
    assert [source.read(index).label for index in range(3)] == ["7", "12", "3"]
    assert source.labels() == ["12", "3", "7"]
    chosen = opened(path, label="cls", selection=Selection(where={"cls": "12"}), lines="join")
    assert (captions(chosen), chosen.labels()) == ([("one",)], ["12"])
    assert captions(opened(path, lines="join"))[0] == ("zero null",)
    inside = opened(path, captions=CaptionRule(fields=("side.x", "caption")), selection=Selection({"side.x": "left"}))
    assert captions(inside) == [("left", "two")]


def test_sparse_members_are_left_out_and_one_that_was_replaced(tmp_path):
    path = write(tmp_path / "a.tar", ("1.jpg", b"old"), ("2.jpg", b"2"), ("1.jpg", b"new"))
    source = opened(path, captions=NO_CAPTIONS)
    assert [source.read(index).media for index in range(len(source))] == [b"new", b"2"]
    assert source.account().left_out == {"file| that a later one of the same name replaces": 1}

    header = bytearray(tarfile.TarInfo("3.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0  # one piece of no bytes
    header[483:495] = b"%011o\0" % 4096  # the size with its holes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + path.read_bytes())
    account = opened(path, captions=NO_CAPTIONS).account()
    assert account.left_out["sparse file|"] == 1
    assert account.examples["sparse file|"] == "3.jpg"


def test_other_members_are_named_by_their_suffix(tmp_path):
    path = write(tmp_path / "a.tar", ("1.jpg", b"1"), ("1.mp4", b"v"), ("2.npy", b"n"), ("b/2.jpg", b"2"))
    source = opened(path, captions=NO_CAPTIONS, members="[0-9]*")
    assert source.account().left_out == {".mp4 (video)": 1, ".npy (unknown)": 1, ".jpg (not of `members`)": 1}
    with pytest.raises(ConfigError, match=r"holds no audio member.*found: \.jpg \.mp4 \.npy"):
        WebdatasetSource([path], "audio")


def test_the_first_of_several_tars_may_be_damaged(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"damaged")
    write(tmp_path / "1.tar", ("1.jpg", b"1"), ("1.cls", b"4"))
    paths = [tmp_path / "0.tar", tmp_path / "1.tar"]
    source = WebdatasetSource(paths, "image", label="cls", captions=CaptionRule("label"))
    with pytest.raises(DataError, match=r"0\.tar: not an uncompressed tar"):
        source.read(0)
    assert source.read(1).captions == ("4",)
    with pytest.raises(ConfigError, match=r"holds no audio member.*found: \.cls \.jpg"):
        WebdatasetSource(paths, "audio")


def test_samples_without_a_caption_are_counted_where_one_is_read(tmp_path):
    path = write(
        tmp_path / "a.tar", ("1.jpg", b"1"), ("1.cls", b"3"), ("2.jpg", b"2"), ("2.txt", b"x"), ("3.jpg", b"3")
    )
    assert opened(path, captions=CaptionRule(default="some")).account().line() == "without a caption: 2"
    assert opened(path, captions=NO_CAPTIONS).account().line() == ""


def test_damage_is_counted(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"damaged")
    write(tmp_path / "1.tar", ("1.jpg", b"1"))
    source = WebdatasetSource([tmp_path / "0.tar", tmp_path / "1.tar"], "image", captions=NO_CAPTIONS)
    assert source.account().left_out == {"damaged file|": 1}
    assert source.account().examples == {"damaged file|": "0.tar"}
