import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.selection import Selection
from modalities.data.sources.webdataset import WebdatasetSource


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def fields(**values) -> bytes:
    return json.dumps(values).encode()


SPEECH = {
    "a.flac": b"audio a" * 100,
    "a.json": fields(caption="says a", label=1, split="train"),
    "b.json": fields(caption="says b", label=0, split="test"),
    "b.flac": b"audio b",
    "c.flac": b"audio c",
    "c.txt": b"says c\nthe letter c\n",
    "c.json": fields(label=1, split="train"),
}


def test_samples_are_grouped_by_key_and_read_by_offset(tmp_path):
    source = WebdatasetSource([write_tar(tmp_path / "speech.tar", SPEECH)], "audio", label="label")
    records = [source.read(index) for index in (2, 1, 0)]
    assert [record.media for record in records] == [b"audio c", b"audio b", b"audio a" * 100]
    assert [record.captions for record in records] == [("says c", "the letter c"), ("says b",), ("says a",)]
    assert [record.label for record in records] == ["1", "0", "1"]
    assert [record.suffix for record in records] == [".flac"] * 3
    assert records[0].key == "speech/c"
    assert records[0].origin.endswith("speech.tar:c.flac")
    assert source.labels() == ["0", "1"]
    assert pickle.loads(pickle.dumps(source)).read(2) == records[0]


def test_where_filters_by_a_field(tmp_path):
    path = write_tar(tmp_path / "speech.tar", SPEECH)
    source = WebdatasetSource([path], "audio", selection=Selection(where={"split": "train"}))
    assert [source.read(index).key for index in range(len(source))] == ["speech/a", "speech/c"]
    with pytest.raises(ConfigError, match="none of 3 samples is left by split == valid"):
        WebdatasetSource([path], "audio", selection=Selection(where={"split": "valid"}))


def test_several_tars_with_the_same_names_inside(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [write_tar(tmp_path / "s.tar", SPEECH), write_tar(tmp_path / "x" / "s.tar", SPEECH)]
    source = WebdatasetSource(paths, "audio")
    assert len(source) == 6
    assert len({source.read(index).key for index in range(6)}) == 6


def test_a_robot_video_tree_with_a_constant_caption(tmp_path):
    members = {
        "./meta/info.json": b"{}",
        "./data/chunk-000/episode_000000.parquet": b"table",
        "./videos/chunk-000/observation.images.head/episode_000000.mp4": b"clip 0",
        "./videos/chunk-000/observation.images.head/episode_000001.mp4": b"clip 1",
        "./videos/chunk-000/observation.images.wrist/episode_000000.mp4": b"other camera",
    }
    path = write_tar(tmp_path / "robot.tar", members)
    rule = CaptionRule(constant="a robot grasps a bottle")
    source = WebdatasetSource([path], "video", "videos/**/*head/episode_*.mp4", captions=rule)
    assert [source.read(index).media for index in range(len(source))] == [b"clip 0", b"clip 1"]
    assert source.read(1).captions == ("a robot grasps a bottle",)
    assert source.read(1).key == "robot/videos/chunk-000/observation.images.head/episode_000001"
    with pytest.raises(ConfigError, match=r"no video member that matches 'movies/\*'.*found: \.json \.mp4 \.parquet"):
        WebdatasetSource([path], "video", "movies/*", captions=rule)
    with pytest.raises(ConfigError, match=r"no audio member; needed: \.wav"):
        WebdatasetSource([path], "audio", captions=rule)


def test_bad_records_are_their_own_error(tmp_path):
    members = SPEECH | {
        "d.flac": b"audio d",
        "e.flac": b"audio e",
        "e.json": b"{broken",
        "f.flac": b"",
        "f.txt": b"f",
    }
    path = write_tar(tmp_path / "speech.tar", members)
    source = WebdatasetSource([path], "audio")
    for index, message in ((3, r"d\.flac: no caption"), (4, r"e\.json: not readable as JSON"), (5, r"f\.flac: empty")):
        with pytest.raises(DataError, match=message):
            source.read(index)
    with_default = WebdatasetSource([path], "audio", captions=CaptionRule(default="someone speaks"))
    assert with_default.read(3).captions == ("someone speaks",)
    # A sample whose fields cannot be read stays, so that training reports it.
    assert len(WebdatasetSource([path], "audio", selection=Selection(where={"split": "train"}))) == 3


def test_captions_missing_everywhere_are_refused(tmp_path):
    path = write_tar(tmp_path / "bare.tar", {"a.flac": b"1", "b.flac": b"2"})
    with pytest.raises(ConfigError, match=r"none of 2 samples.*a\.flac: no caption"):
        WebdatasetSource([path], "audio")
    assert WebdatasetSource([path], "audio", captions=CaptionRule(mode="none")).read(0).captions == ()


def test_two_media_of_one_key_are_refused(tmp_path):
    path = write_tar(tmp_path / "two.tar", {"a.jpg": b"1", "a.png": b"2", "a.txt": b"x"})
    with pytest.raises(DataError, match=r"'a' has two media members, a\.jpg and a\.png"):
        WebdatasetSource([path], "image")
    assert WebdatasetSource([path], "image", "*.png").read(0).media == b"2"


@pytest.mark.parametrize("keep", [300, 512 * 2 + 100, 512 * 3, -10240 + 512])
def test_a_tar_that_was_cut_short_is_refused(tmp_path, keep):
    data = write_tar(tmp_path / "speech.tar", SPEECH).read_bytes()
    (tmp_path / "speech.tar").write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"speech\.tar: (not an uncompressed tar|damaged or cut short)"):
        WebdatasetSource([tmp_path / "speech.tar"], "audio")


def test_a_damaged_header_in_the_middle_is_refused(tmp_path):
    path = write_tar(tmp_path / "speech.tar", SPEECH)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmember("b.flac").offset
    data[header : header + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged or cut short at byte \d+, after b\.json"):
        WebdatasetSource([path], "audio")


def test_compressed_and_other_files_are_refused(tmp_path):
    for name, mode, kind in (("a.tar", "w:gz", "gzip"), ("b.tar", "w:xz", "xz"), ("d.tar", "w:bz2", "bzip2")):
        with pytest.raises(DataError, match=f"{name}: compressed with {kind}, which allows no random access"):
            WebdatasetSource([write_tar(tmp_path / name, SPEECH, mode)], "audio")
    (tmp_path / "c.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="not an uncompressed tar"):
        WebdatasetSource([tmp_path / "c.tar"], "audio")
    (tmp_path / "d.tar").write_bytes(b"")
    with pytest.raises(DataError, match="not an uncompressed tar"):
        WebdatasetSource([tmp_path / "d.tar"], "audio")


def test_a_tar_that_changes_afterwards_is_noticed(tmp_path):
    path = write_tar(tmp_path / "speech.tar", SPEECH)
    source = WebdatasetSource([path], "audio", captions=CaptionRule(mode="none"))
    before = source.fingerprint()
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.flac: 88 of 700 bytes"):
        source.read(0)
    write_tar(path, {name: data for name, data in SPEECH.items() if name[0] != "b"})
    assert WebdatasetSource([path], "audio").fingerprint() != before
    path.unlink()
    with pytest.raises(DataError, match=r"a\.flac: cannot be read"):
        source.read(0)
