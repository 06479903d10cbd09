import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from core.errors import ConfigError, DataError
from modalities.data.captions import CaptionRule
from modalities.data.folder import FolderSource
from modalities.data.selection import Selection


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


@pytest.fixture
def animals(tmp_path):
    picture(tmp_path / "dog" / "b.JPG").with_suffix(".json").write_text(json.dumps({"caption": " a  dog "}))
    picture(tmp_path / "cat" / "a.png").with_suffix(".txt").write_text("a cat\n\none cat\n")
    many = {"captions": ["x", "y"], "kind": "old"}
    picture(tmp_path / "cat" / "deep" / "c.webp").with_suffix(".json").write_text(json.dumps(many))
    (tmp_path / "notes.md").write_text("not media")
    picture(tmp_path / ".thumbnails" / "hidden.png")
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
    picture(animals / "dog" / "z.png")
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
    picture(animals / "dog" / "z.png").with_name(name).write_bytes(content)
    with pytest.raises(DataError, match=rf"z\..*{message}"):
        FolderSource(animals, "image").read(3)


def test_captions_missing_everywhere_are_refused_when_built(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a" / "2.png")
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
        picture(animals / "many" / f"{number}.png")
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
