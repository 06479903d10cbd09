"""The index of tars: made once, right or made again, and a damaged tar costs its own samples."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.data.sources import tar_index
from modalities.data.sources.captions import CaptionRule
from modalities.data.sources.selection import Selection
from modalities.data.sources.tar_index import FOLDER
from modalities.data.sources.webdataset import WebdatasetSource
from tests.modalities.data.sets import COUNT, cut, flip, image, number_of, write_set


@pytest.fixture
def tars(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_set("webdataset", tmp_path / "set")
    return sorted((tmp_path / "set").glob("*.tar"))


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """The names of the tars whose headers were read."""
    seen: list[str] = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda path: seen.append(path.name) or scan(path))
    return seen


def contents(source: WebdatasetSource) -> list:
    return [source.read(index) for index in range(len(source))]


def test_a_tar_is_scanned_once(tars, scans):
    first = WebdatasetSource(tars, "image")
    assert scans == [path.name for path in tars]
    assert [number_of(record.captions) for record in contents(first)] == list(range(COUNT))
    assert [record.media for record in contents(first)] == [image(number) for number in range(COUNT)]
    again = WebdatasetSource(tars, "image")
    assert contents(again) == contents(first)
    assert again.fingerprint() == first.fingerprint()
    assert len(scans) == 4
    assert {path.parent.name for path in tars[0].parent.rglob("*") if path.is_file()} == {"set", FOLDER}
    WebdatasetSource(tars, "image", label="label")  # other settings have an index of their own
    assert len(scans) == 8


def test_a_tar_that_changed_is_scanned_again(tars, scans):
    WebdatasetSource(tars, "image")
    os.utime(tars[1], ns=(1, 1))
    WebdatasetSource(tars, "image")
    assert scans[4:] == [tars[1].name]
    before = WebdatasetSource(tars, "image").fingerprint()
    with tarfile.open(tars[2], "a") as tar:
        tar.add(tars[0], "extra.txt")
        (tars[0].parent / "new.png").write_bytes(image(99))
        tar.add(tars[0].parent / "new.png", "new.png")
    source = WebdatasetSource(tars, "image", captions=CaptionRule("none"))
    assert len(source) == COUNT + 1
    assert source.fingerprint() != before
    assert scans[5:] == [tars[2].name]


@pytest.mark.parametrize("place", [0, 20, 60, 100, 300, -1])
def test_a_damaged_index_is_made_again(tars, scans, place):
    expected = contents(WebdatasetSource(tars, "image"))
    for path in (tars[0].parent / FOLDER).iterdir():
        flip(path, place % path.stat().st_size)
    assert contents(WebdatasetSource(tars, "image")) == expected
    for path in (tars[0].parent / FOLDER).iterdir():
        cut(path, 0.4)
    assert contents(WebdatasetSource(tars, "image")) == expected
    assert set(scans[4:]) == {path.name for path in tars}


def test_a_folder_that_cannot_be_written_has_its_index_in_the_users_cache(tars, scans, monkeypatch, tmp_path):
    (tars[0].parent / FOLDER).write_text("in the way")
    expected = contents(WebdatasetSource(tars, "image"))
    assert len(list((tmp_path / "home" / "selfflow" / "tar-index").rglob("*.tar.*"))) == 4
    WebdatasetSource(tars, "image")
    assert len(scans) == 4
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # neither can be written
    assert contents(WebdatasetSource(tars, "image")) == expected


def test_a_stale_index_beside_a_tar_does_not_hide_the_one_in_the_users_cache(tars, monkeypatch):
    WebdatasetSource(tars, "image")
    with tarfile.open(tars[0], "w") as tar:
        (tars[0].parent / "new.png").write_bytes(image(99))
        tar.add(tars[0].parent / "new.png", "new.png")
    index = tars[0].parent / FOLDER
    hidden = tars[0].parent / "hidden"
    index.rename(hidden)
    index.write_text("cannot be written")
    rule = CaptionRule("none")
    source = WebdatasetSource(tars, "image", captions=rule)
    index.unlink()
    hidden.rename(index)
    assert source.read(0).media == image(99)


def test_many_tars_are_scanned_by_several_processes(tars, monkeypatch):
    alone = WebdatasetSource(tars, "image")
    for path in (tars[0].parent / FOLDER).iterdir():
        path.unlink()
    monkeypatch.setattr(tar_index, "_IN_PARALLEL", 2)
    assert contents(WebdatasetSource(tars, "image")) == contents(alone)
    for path in (tars[0].parent / FOLDER).iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="no audio member"):
        WebdatasetSource(tars, "audio")


def test_memory_and_what_travels_to_workers_do_not_grow_with_the_samples(tars):
    source = WebdatasetSource(tars, "image")
    contents(source)
    few = len(pickle.dumps(WebdatasetSource(tars[:1], "image")))
    assert len(pickle.dumps(source)) < few + 3 * 150  # a path, a name and a digest for each tar
    assert pickle.loads(pickle.dumps(source)).read(17) == source.read(17)


def test_selections_and_classes_are_noted_in_the_index(tars, scans):
    selection = Selection(where={"label": "1"})
    first = WebdatasetSource(tars, "image", label="label", selection=selection)
    assert [number_of(record.captions) % 3 for record in contents(first)] == [1] * len(first)
    assert first.labels() == ["1"]
    again = WebdatasetSource(tars, "image", label="label", selection=selection)
    assert contents(again) == contents(first)
    assert again.labels() == ["1"]
    assert len(scans) == 4
    train, test = (
        WebdatasetSource(tars, "image", selection=Selection(split=split, holdout=0.4)) for split in ("train", "test")
    )
    numbers = [number_of(record.captions) for source in (train, test) for record in contents(source)]
    assert sorted(numbers) == list(range(COUNT))


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_of_several_tars_a_damaged_one_gives_what_is_before_the_damage_and_says_so(tars, share):
    cut(tars[1], share)
    source = WebdatasetSource(tars, "image")
    for _ in range(2):  # by a scan, and by the index
        errors, good = [], []
        for index in range(len(source)):
            try:
                good.append(number_of(source.read(index).captions))
            except DataError as error:
                errors.append(str(error))
        assert len(errors) <= 2  # the damage, and a sample whose caption was lost with it
        assert any(f"{tars[1]}: damaged or cut short at byte" in error for error in errors)
        assert set(range(10)) | set(range(20, 40)) < set(good)
        assert good == sorted(good)
        source = WebdatasetSource(tars, "image")
    with pytest.raises(DataError, match="damaged or cut short"):
        WebdatasetSource(tars[1:2], "image")


def test_a_file_that_is_no_tar_costs_its_samples_and_is_refused_alone(tars):
    tars[1].write_bytes(b"")
    source = WebdatasetSource(tars, "image")
    assert len(source) == 31
    with pytest.raises(DataError, match=r"shard-1\.tar: not an uncompressed tar"):
        source.read(10)
    assert [number_of(source.read(index).captions) for index in (9, 11)] == [9, 20]
    for path in tars:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-0\.tar: not an uncompressed tar"):
        WebdatasetSource(tars, "image")


def test_an_index_that_changes_under_an_open_source_is_noticed(tars):
    source = WebdatasetSource(tars, "image", shuffle_blocks=1)
    with tarfile.open(tars[1], "w"):
        pass
    WebdatasetSource(tars, "image")
    with pytest.raises(DataError, match=r"shard-1\.tar: has changed since it was opened"):
        source.read(15)
    assert number_of(source.read(5).captions) == 5
