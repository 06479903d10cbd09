import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from core.errors import ConfigError, DataError
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.folder import FolderSource
from modalities.data.sources.selection import Selection


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


@pytest.fixture
def animals(tmp_path):
    image(tmp_path / "dog" / "b.JPG").with_suffix(".json").write_text(json.dumps({"caption": " a  dog "}))
    image(tmp_path / "cat" / "a.png").with_suffix(".txt").write_text("a cat\n\none cat\n")
    many = {"captions": ["x", "y"], "kind": "old"}
    image(tmp_path / "cat" / "deep" / "c.webp").with_suffix(".json").write_text(json.dumps(many))
    (tmp_path / "notes.md").write_text("not media")
    image(tmp_path / ".thumbnails" / "hidden.png")
    return tmp_path


def test_files_captions_and_labels(animals):
    source = FolderSource(animals, "image")
    records = [source.read(index) for index in range(len(source))]
    assert [record.key for record in records] == ["cat/a.png", "cat/deep/c.webp", "dog/b.JPG"]
    assert [record.captions for record in records] == [("a cat", "one cat"), ("x", "y"), ("a dog",)]
    assert [record.label for record in records] == ["cat", "deep", "dog"]
    assert [record.suffix for record in records] == [".png", ".webp", ".jpg"]
    assert records[0].media == animals / "cat" / "a.png"
    assert source.labels() == ["cat", "deep", "dog"]
    assert pickle.loads(pickle.dumps(source)).read(1) == records[1]


def test_captions_from_folder_names_a_constant_or_none(animals):
    texts = {
        CaptionRule(mode="label"): ("cat",),
        CaptionRule(constant="a pet"): ("a pet",),
        CaptionRule(mode="none"): (),
    }
    for rule, expected in texts.items():
        assert FolderSource(animals, "image", rule).read(0).captions == expected


def test_a_single_missing_caption_is_that_records_error(animals):
    image(animals / "dog" / "z.png")
    source = FolderSource(animals, "image")
    with pytest.raises(DataError, match=r"dog/z\.png: no caption.*caption_default"):
        source.read(3)
    assert FolderSource(animals, "image", CaptionRule(default="a thing")).read(3).captions == ("a thing",)
    assert FolderSource(animals, "image", CaptionRule(default="a thing")).read(0).captions == ("a cat", "one cat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("z.json", b"{broken", "not readable as JSON"),
        ("z.json", b"[1, 2]", "expected a JSON object, got list"),
        ("z.json", b'{"caption": 5}', "expected a text or a list of texts, got int"),
        ("z.json", b'{"caption": "  "}', "no caption"),
        ("z.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_damaged_sidecars_name_their_file(animals, name, content, message):
    image(animals / "dog" / "z.png").with_name(name).write_bytes(content)
    with pytest.raises(DataError, match=rf"z\..*{message}"):
        FolderSource(animals, "image").read(3)


def test_captions_missing_everywhere_are_refused_when_built(tmp_path):
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "a" / "2.png")
    with pytest.raises(ConfigError, match=r"none of 2 image files.*no caption.*captions: none"):
        FolderSource(tmp_path, "image")
    assert len(FolderSource(tmp_path, "image", CaptionRule(mode="label"))) == 2


def test_missing_empty_and_wrong_paths(animals):
    with pytest.raises(ConfigError, match=r"does not exist.*holds: .*cat.*Did you mean: 'dog'"):
        FolderSource(animals / "dogs", "image")
    with pytest.raises(ConfigError, match=r"holds no audio file \(\.wav .*found: cat, dog"):
        FolderSource(animals, "audio")
    with pytest.raises(ConfigError, match=r"notes\.md is a file, a folder is needed"):
        FolderSource(animals / "notes.md", "image")
    (animals / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no image file .*found: nothing"):
        FolderSource(animals / "empty", "image")


def test_where_and_holdout(animals):
    kept = FolderSource(animals, "image", selection=Selection(where={"kind": "old"}))
    assert [kept.read(index).key for index in range(len(kept))] == ["cat/deep/c.webp"]
    with pytest.raises(ConfigError, match="none of 3 files is left by kind == new"):
        FolderSource(animals, "image", selection=Selection(where={"kind": "new"}))

    for number in range(60):
        image(animals / "many" / f"{number}.png")
    label = CaptionRule(mode="label")
    sides = [FolderSource(animals, "image", label, Selection(split=split, holdout=0.3)) for split in ("train", "test")]
    train, test = ({source.read(index).key for index in range(len(source))} for source in sides)
    assert not train & test
    assert len(train | test) == 63
    assert 8 <= len(test) <= 31  # 63 draws of 0.3: 18.9 +- 3.6


def test_fingerprint_follows_names_and_sizes(animals):
    before = FolderSource(animals, "image").fingerprint()
    assert FolderSource(animals, "image").fingerprint() == before
    (animals / "cat" / "a.png").write_bytes((animals / "cat" / "a.png").read_bytes() + b"0")
    resized = FolderSource(animals, "image").fingerprint()
    (animals / "cat" / "a.png").rename(animals / "cat" / "a2.png")
    (animals / "cat" / "a.txt").rename(animals / "cat" / "a2.txt")
    assert len({before, resized, FolderSource(animals, "image").fingerprint()}) == 3


def folder(tmp_path, *names: str) -> Path:
    for name in names:
        image(tmp_path / name)
    return tmp_path


def keys(source: FolderSource) -> list[str]:
    return [source.read(index).key for index in range(len(source))]


NO_CAPTIONS = CaptionRule(mode="none")


def test_system_folders_and_hidden_files_are_no_records_and_no_classes(animals):
    before = FolderSource(animals, "image")
    for name in ("@eaDir/a.png", "cat/@eaDir/a@SYNOPHOTO_THUMB.jpg", "__MACOSX/cat/._a.png", "$RECYCLE.BIN/x.png"):
        image(animals / name)
    (animals / "cat" / "Thumbs.db").write_bytes(b"x")
    (animals / "cat" / "._a.png").write_bytes(b"\0\5\26\7")
    after = FolderSource(animals, "image")
    assert keys(after) == keys(before)
    assert after.labels() == ["cat", "deep", "dog"]
    assert after.fingerprint() == before.fingerprint()
    assert after.account().left_out == {
        "hidden or system file|": 2,
        "hidden or system folder|": 5,
        ".md (unknown)": 1,
    }


def test_suffixes_without_a_decoder_of_other_media_and_unknown_ones_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "modalities.data.sources.names.unreadable", lambda m: {".heic": "pillow-heif"} if m == "image" else {}
    )
    folder(tmp_path, "a.png")
    for name in ("a.HEIC", "b.heic", "c.mp4", "d.wav", "e.parquet", "f.md", "g", "h.123", "i.very-long-suffix"):
        (tmp_path / name).write_bytes(b"x")
    account = FolderSource(tmp_path, "image", NO_CAPTIONS).account()
    assert account.left_out == {
        ".heic (no decoder here: pillow-heif)": 2,
        ".mp4 (video)": 1,
        ".wav (audio)": 1,
        ".parquet (read by `kind: parquet`)": 1,
        ".md (unknown)": 1,
        "file| without a suffix": 1,
        "file| of unknown suffixes": 2,
    }
    assert account.examples[".heic (no decoder here: pillow-heif)"] == "a.HEIC"
    assert "2 .heic (no decoder here: pillow-heif), 2 files of unknown suffixes" in account.line()


def test_a_folder_without_records_says_what_it_holds(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds no image file[^\n]*\n.*left out: 1 \.mp4 \(video\)"):
        FolderSource(tmp_path, "image", NO_CAPTIONS)


def test_links_to_folders_and_files_are_followed_and_counted(tmp_path):
    elsewhere = folder(tmp_path / "elsewhere", "in/1.png", "in/deep/2.png")
    root = folder(tmp_path / "set", "own/0.png")
    (root / "linked").symlink_to(elsewhere / "in")
    (root / "again").symlink_to(elsewhere / "in" / "deep")
    (root / "beside").symlink_to("own")
    (root / "one.png").symlink_to(elsewhere / "in" / "1.png")
    (root / "one.txt").symlink_to(root / "nothing.txt")
    source = FolderSource(root, "image", NO_CAPTIONS)
    expected = ["again/2.png", "beside/0.png", "linked/1.png", "linked/deep/2.png", "one.png", "own/0.png"]
    assert keys(source) == expected
    assert source.labels() == ["again", "beside", "deep", "linked", "own", "set"]
    assert source.account().linked == {"folder|": 3, "file|": 1}
    assert source.account().left_out == {"broken link|": 1}


def test_links_in_a_circle_and_upwards_end(tmp_path):
    root = folder(tmp_path / "set", "a/0.png", "b/1.png")
    image(tmp_path / "beside.png")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "here").symlink_to(".")
    (root / "a" / "b").symlink_to(root / "b")
    (root / "b" / "a").symlink_to(root / "a")
    (root / "out").symlink_to(tmp_path)
    (root / "self.png").symlink_to("self.png")
    source = FolderSource(root, "image", NO_CAPTIONS)
    assert keys(source) == ["a/0.png", "a/b/1.png", "b/1.png", "b/a/0.png"]
    assert source.account().linked == {"folder|": 2}
    assert source.account().left_out == {
        "linked folder| read already or leading in a circle": 7,  # and those that are met again through a/b and b/a
        "broken link|": 1,
    }


def test_a_link_in_a_linked_folder_is_followed_to_what_is_not_read_yet(tmp_path):
    for name in ("one", "two", "three"):
        image(tmp_path / name / f"{name}.png")
    (tmp_path / "one" / "next").symlink_to("../two")
    (tmp_path / "two" / "next").symlink_to("../three")
    (tmp_path / "three" / "next").symlink_to("../one")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "first").symlink_to("../one")
    source = FolderSource(tmp_path / "set", "image", NO_CAPTIONS)
    assert keys(source) == ["first/next/next/three.png", "first/next/two.png", "first/one.png"]
    assert source.account().left_out == {"linked folder| read already or leading in a circle": 1}


def test_many_folders_linked_to_each_other_end(tmp_path):
    names = [f"d{number}" for number in range(12)]
    for name in names:
        image(tmp_path / "set" / name / "0.png")
    for name in names:
        for other in names:
            (tmp_path / "set" / name / f"to-{other}").symlink_to(tmp_path / "set" / other)
    assert len(FolderSource(tmp_path / "set", "image", NO_CAPTIONS)) == 12 + 12 * 11


def test_names_go_together_in_capitals_and_in_every_unicode_form(tmp_path):
    composed, parted = "caf\u00e9", "cafe\u0301"
    folder(tmp_path, "A.JPG", "b.jpg", "c.Jpg", f"{composed}.png", f"x/{parted}.png")
    for name, text in (("A.TXT", "one"), ("b.Txt", "two"), ("c.JSON", '{"caption": "three"}')):
        (tmp_path / name).write_text(text)
    (tmp_path / f"{parted}.txt").write_text("four")
    (tmp_path / "x" / f"{composed}.CAPTION").write_text("five")
    source = FolderSource(tmp_path, "image")
    found = {record.key: record.captions for record in map(source.read, range(len(source)))}
    assert found == {
        "A.JPG": ("one",),
        "b.jpg": ("two",),
        "c.Jpg": ("three",),
        f"{composed}.png": ("four",),
        f"x/{parted}.png": ("five",),
    }
    assert source.account().line() == ""
    image(tmp_path / f"x{composed}" / "1.png")
    image(tmp_path / f"x{parted}" / "2.png")
    classes = FolderSource(tmp_path, "image", CaptionRule(mode="label"))
    assert classes.labels() == sorted({tmp_path.name, "x", f"x{composed}"})
    assert {classes.read(index).captions[0] for index in range(len(classes))} == set(classes.labels())


def test_the_exact_name_goes_before_one_in_capitals(tmp_path):
    folder(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / "a.TXT").write_text("large")
    assert FolderSource(tmp_path, "image").read(0).captions == ("small",)


def test_captions_that_match_no_file_and_files_without_one_are_counted(tmp_path):
    folder(tmp_path, "a.png", "b.png", "c.png")
    for name in ("a.txt", "x.txt", "y.json", "b.cls"):
        (tmp_path / name).write_text("{}")
    account = FolderSource(tmp_path, "image").account()
    assert account.left_out == {".txt (no image of that name)": 1, ".json (no image of that name)": 1}
    assert account.uncaptioned == 2
    assert "without a caption: 2" in account.line()
    assert FolderSource(tmp_path, "image", NO_CAPTIONS).account().uncaptioned == 0


def test_an_empty_text_beside_a_good_json_and_an_unreadable_one_beside_a_good_text(tmp_path):
    folder(tmp_path, *(f"{name}.png" for name in "abcde"))
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "a.json").write_text('{"caption": "from JSON"}')
    (tmp_path / "b.json").write_bytes(b"")
    (tmp_path / "b.txt").write_text("from text")
    (tmp_path / "c.json").write_text("{broken")
    (tmp_path / "c.txt").write_text("from text")
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.json").write_text("{broken")
    source = FolderSource(tmp_path, "image", CaptionRule(default="some"))
    assert [source.read(index).captions for index in range(4)] == [
        ("from JSON",),
        ("from text",),
        ("from text",),
        ("some",),
    ]
    with pytest.raises(DataError, match=r"e\.json: not readable as JSON"):
        source.read(4)


def test_lines_are_captions_of_their_own_or_one(tmp_path):
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("a cat\n\non a mat\n")
    (tmp_path / "b.caption").write_text("a dog\r\nthat runs")
    assert FolderSource(tmp_path, "image").read(0).captions == ("a cat", "on a mat")
    source = FolderSource(tmp_path, "image", lines="join")
    assert [source.read(index).captions for index in range(2)] == [("a cat on a mat",), ("a dog that runs",)]


def test_caption_and_class_files(tmp_path):
    folder(tmp_path, "a.png", "b.png", "c.png")
    for name, text in (("a.caption", "a cat"), ("a.cls", "281\n"), ("b.txt", "text"), ("b.caption", "other")):
        (tmp_path / name).write_text(text)
    (tmp_path / "c.json").write_text('{"caption": "c", "cls": 7.0}')
    source = FolderSource(tmp_path, "image", label="cls")
    records = [source.read(index) for index in range(3)]
    assert [record.captions for record in records] == [("a cat",), ("text",), ("c",)]
    assert [record.label for record in records] == ["281", None, "7"]
    assert source.labels() == ["281", "7"]
    assert FolderSource(tmp_path, "image").read(0).label == tmp_path.name


def test_metadata_lines_name_their_files(tmp_path):
    folder(tmp_path, "0.png", "1.png", "train/2.png", "train/cafe\u0301.png", "3.png")
    lines = [
        {"file_name": "0.png", "caption": "zero", "kind": "x"},
        {"file_name": "./1.png", "caption": ["one", None, "eins"]},
        {"file_name": "train\\2.png", "caption": "outer"},
        {"file_name": "gone.png", "caption": "gone"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "\n{broken\n"
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + text)
    (tmp_path / "train" / "metadata.csv").write_text(
        'file_name,caption,n\n2.png,"of two\nlines, and ""more""",5\ncaf\u00e9.png,coffee,\n'
    )
    (tmp_path / "1.txt").write_text("beside")
    source = FolderSource(tmp_path, "image")
    assert [source.read(index).captions for index in (0, 1, 3, 4)] == [
        ("zero",),
        ("beside",),
        ('of two lines, and "more"',),
        ("coffee",),
    ]
    with pytest.raises(DataError, match=r"3\.png: no caption"):
        source.read(2)
    account = source.account()
    assert account.left_out == {
        "line| of metadata.jsonl without a record": 1,
        "line| of metadata.jsonl that cannot be read": 1,
    }
    assert account.examples["line| of metadata.jsonl without a record"] == "gone.png"
    assert account.uncaptioned == 1
    assert pickle.loads(pickle.dumps(source)).read(0) == source.read(0)

    chosen = FolderSource(tmp_path, "image", selection=Selection(where={"n": "5"}), label="n")
    assert (keys(chosen), chosen.read(0).label, chosen.labels()) == (["train/2.png"], "5", ["5"])
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"metadata\.jsonl: cannot be read"):
        source.read(0)


def test_a_metadata_table_that_is_none(tmp_path):
    folder(tmp_path, "0.png")
    (tmp_path / "0.txt").write_text("zero")
    for data in (b"", b"\xff\xfe\x00", b"[1]\n", b'{"file_name": 5}\n', b'{"a": 1}\n'):
        (tmp_path / "metadata.jsonl").write_bytes(data)
        (tmp_path / "metadata.csv").write_bytes(data)
        assert FolderSource(tmp_path, "image").read(0).captions == ("zero",)


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    folder(tmp_path, "a/0.png", "b/1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    source = FolderSource(tmp_path, "image", NO_CAPTIONS)
    assert keys(source) == ["a/0.png"]
    assert source.account().left_out == {"folder| that cannot be opened": 1}


def test_a_file_that_is_gone_after_the_scan_does_not_end_the_start(animals):
    source = FolderSource(animals, "image")
    before = source.fingerprint()
    (animals / "dog" / "b.JPG").unlink()
    assert source.fingerprint() != before
