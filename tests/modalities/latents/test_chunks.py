"""Chunks appear whole or not at all, and a folder takes chunks of one set of settings."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.latents import chunks
from modalities.latents.chunks import ChunkFolder, is_running

SETTINGS = {"records": 20, "chunk": 8, "views": 1, "dtype": "float16", "media": {"crop": "center", "size": [8, 8]}}


def folder(path: Path, **changes) -> ChunkFolder:
    return ChunkFolder(path, SETTINGS | changes, 3)


def finished(path: Path, number: int, **changes) -> None:
    """A chunk without samples, as a process leaves it."""
    place = path / f"chunk-{number:05}"
    place.mkdir()
    about = {"samples": 0, "bad": [], "labels": [], "moments": {}, "settings": folder(path).digest()} | changes
    (place / "chunk.json").write_text(json.dumps(about))
    (place / "index.json").write_text(json.dumps({"version": 2, "shards": []}))


def test_a_folder_is_begun_once_and_opened_again(tmp_path):
    begun = folder(tmp_path / "new" / "image")
    begun.open()
    begun.open()
    assert json.loads((begun.path / "encode.json").read_text()) == SETTINGS
    assert begun.missing() == [0, 1, 2]
    finished(begun.path, 1, labels=["cat"])
    assert begun.missing() == [0, 2]
    assert begun.read(1).labels == ["cat"]
    assert [path.name for path in begun.path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_another_process_begins_at_the_same_moment_is_joined(tmp_path, monkeypatch):
    exists, begun = Path.exists, []

    def exists_later(path: Path, **options) -> bool:
        if path.name == "encode.json" and not begun:
            begun.append(path.write_text(json.dumps(SETTINGS)))  # right after it was seen not to be there
            return False
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", exists_later)
    folder(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["encode.json"]


def test_other_settings_are_refused_by_name(tmp_path):
    folder(tmp_path).open()
    with pytest.raises(ConfigError) as caught:
        folder(tmp_path, views=2, media={"crop": "random", "size": [8, 8]}).open()
    text = str(caught.value)
    assert f"--views: 1 when {tmp_path} was begun, 2 now" in text
    assert f"media.crop: 'center' when {tmp_path} was begun, 'random' now" in text
    assert "size" not in text


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--out: .* is not empty \(it holds holiday.png\)"):
        folder(tmp_path).open()
    with pytest.raises(ConfigError, match=r"--out: .* cannot be made: Not a directory"):
        folder(tmp_path / "holiday.png" / "image").open()
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_what_killed_processes_left_is_removed_and_the_work_of_others_is_not(tmp_path):
    folder(tmp_path).open()
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    assert not is_running(gone)
    assert is_running(os.getpid())
    of_dead = tmp_path / f".chunk-00000.{platform.node()}-{gone}"
    of_living = tmp_path / f".chunk-00001.{platform.node()}-{os.getppid()}"
    of_others = tmp_path / ".chunk-00002.elsewhere-1"
    for path in (of_dead, of_living, of_others):
        path.mkdir()
        (path / "shard.00000.mds").write_bytes(b"half")
    opened = folder(tmp_path)
    opened.open()
    assert [path.exists() for path in (of_dead, of_living, of_others)] == [False, True, True]
    assert opened.missing() == [0, 1, 2]
    opened.remove_all_left_overs()
    assert not of_living.exists()
    assert not of_others.exists()


def test_a_damaged_chunk_is_named(tmp_path):
    begun = folder(tmp_path)
    begun.open()
    finished(tmp_path, 2)
    (tmp_path / "chunk-00002" / "chunk.json").write_text('{"samples": ')
    with pytest.raises(DataError, match=r"chunk-00002: damaged .*; remove it and encode again"):
        begun.read(2)


def test_a_chunk_of_another_folder_must_have_its_settings(tmp_path):
    (tmp_path / "other").mkdir()
    begun = folder(tmp_path)
    finished(tmp_path / "other", 1)
    (tmp_path / "other" / "chunk-00001").rename(tmp_path / "chunk-00001")
    assert begun.read(1).samples == 0
    with pytest.raises(DataError, match=r"chunk-00001: was made with other settings than encode.json beside it"):
        folder(tmp_path, dtype="float32").read(1)


def test_a_published_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    begun = folder(tmp_path)
    begun.open()
    begun.publish("manifest.json", "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        begun.publish("manifest.json", "new")
    assert (tmp_path / "manifest.json").read_text() == "old"


@pytest.fixture
def columns() -> dict[str, str]:
    pytest.importorskip("streaming", reason="mosaicml-streaming is not installed (extra `full`)")
    return {"key": "str"}


def test_a_chunk_is_there_when_it_is_finished_and_not_before(tmp_path, columns):
    begun = folder(tmp_path)
    begun.open()
    writer = begun.start(1, columns)
    size = writer.add([{"key": "a"}, {"key": "bc"}])
    assert size == sum(4 + 4 + len(key) for key in ("a", "bc"))  # offset, size of the column, text
    assert 1 in begun.missing()
    writer.finish([], ["cat"], {})
    assert begun.missing() == [0, 2]
    chunk = begun.read(1)
    assert (chunk.samples, chunk.labels, chunk.shards[0]["samples"]) == (2, ["cat"], 2)
    assert set(chunk.shards[0]["raw_data"]["hashes"]) == {"sha256"}


def test_an_abandoned_chunk_leaves_nothing(tmp_path, columns):
    begun = folder(tmp_path)
    begun.open()
    writer = begun.start(0, columns)
    writer.add([{"key": "a"}])
    writer.abandon()
    writer.abandon()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encode.json"]


@pytest.mark.parametrize("published", [False, True])
def test_of_two_processes_that_make_one_chunk_the_first_wins(tmp_path, columns, published):
    begun = folder(tmp_path)
    begun.open()
    writer = begun.start(0, columns)
    writer.add([{"key": "a"}])
    finished(tmp_path, 0, labels=["first"])
    if published:  # the first has also published the whole
        begun.remove_all_left_overs()
    writer.finish([], ["second"], {})
    assert begun.read(0).labels == ["first"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk-00000", "encode.json"]
