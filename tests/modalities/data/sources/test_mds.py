"""Samples of MDS shards: every one as it was written, or an error that says why not."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from modalities.data.sources import mds
from modalities.data.sources.mds import MdsShards
from tests.modalities.data.sets import flip, image
from tests.modalities.data.sources.shards import change_index, read_all, write_mds


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mds, "BACKOFF", 0.01)


def shard_of(shards: MdsShards, number: int) -> range:
    """The indices of a shard."""
    ends = shards.blocks().cumsum()
    return range(int(ends[number] - shards.blocks()[number]), int(ends[number]))


@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
@pytest.mark.parametrize("place", ["in place", "cache", "url"])
def test_every_sample_is_read_as_it_was_written(tmp_path, compression, place):
    folder = write_mds(tmp_path / "data", compression=compression)
    path = folder if place != "url" else folder.as_uri()
    shards = MdsShards(path, tmp_path / "cache" if place == "cache" else None)
    assert len(shards) == 40
    assert shards.blocks().sum() == 40
    assert len(shards.blocks()) > 3
    assert shards.columns == {"image": "bytes", "caption": "str", "label": "int"}
    assert shards.name(0) == "shard.00000.mds:0"
    assert shards.name(int(shards.blocks()[0])) == "shard.00001.mds:0"
    assert read_all(shards) == {}
    copy = pickle.loads(pickle.dumps(shards))
    assert read_all(copy) == {}
    assert copy.fingerprint() == shards.fingerprint()
    written = {entry.suffix for entry in folder.iterdir()}
    assert written == ({".json", ".mds"} if compression is None else {".json", f".{compression}"})  # never touched
    with pytest.raises(DataError, match="sample 40 of 40"):
        shards.read(40)


def test_a_cache_is_shared_and_the_source_is_not_needed_again(tmp_path):
    folder = write_mds(tmp_path / "data")
    shards = MdsShards(folder.as_uri(), tmp_path / "cache")
    assert read_all(shards) == {}
    other = MdsShards(folder.as_uri(), tmp_path / "cache")
    for path in folder.glob("*.mds"):
        path.unlink()
    assert read_all(other) == {}


def test_shards_of_another_index_are_other_files_in_the_cache(tmp_path):
    folder = write_mds(tmp_path / "data")
    assert read_all(MdsShards(folder.as_uri(), tmp_path / "cache")) == {}
    shutil.rmtree(folder)
    write_mds(folder, count=30)
    again = MdsShards(folder.as_uri(), tmp_path / "cache")
    assert len(again) == 30
    assert read_all(again) == {}


def test_the_cache_stays_within_its_limit(tmp_path):
    folder = write_mds(tmp_path / "data", compression="zstd")
    shards = MdsShards(folder, tmp_path / "cache", "6kb")
    most = 0
    for index in [*range(0, 40, 7), *range(40), 0, 39, 0]:
        assert shards.read(index)["label"] == index % 3
        most = max(most, sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file()))
    assert 3000 < most <= 6 * 1024
    with pytest.raises(ConfigError, match=r"cache_limit: 2kb; a shard of .* takes 1,\d+ bytes, and two"):
        MdsShards(folder, tmp_path / "cache", "2kb")
    with pytest.raises(ConfigError, match=r"shuffle_blocks 16 reads that many shards at a time"):
        shards.in_order(16)
    assert shards.in_order(2).window == 2


def test_a_file_dropped_by_another_process_is_fetched_again(tmp_path):
    shards = MdsShards(write_mds(tmp_path / "data").as_uri(), tmp_path / "cache")
    assert shards.read(0)["label"] == 0
    for path in (tmp_path / "cache").rglob("*.mds"):
        path.unlink()
    assert shards.read(1)["label"] == 1


def _read_and_report(shards: MdsShards, numbers: list[int], place: Path) -> None:
    place.write_text(json.dumps([shards.read(number)["caption"] for number in numbers]))


def test_forked_processes_read_through_one_small_cache(tmp_path):
    """The parent has read before, two data sets lie in one cache, and the limit makes processes drop each other's."""
    folder = write_mds(tmp_path / "data", compression="zstd")
    train, val = (MdsShards(folder, tmp_path / "cache", "8kb") for _ in range(2))
    assert val.read(5)["label"] == train.read(5)["label"] == 2
    context, numbers = multiprocessing.get_context("fork"), [*range(39, -1, -1), *range(0, 40, 3)]
    processes = [
        context.Process(target=_read_and_report, args=(train, numbers, tmp_path / f"{i}.json")) for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for i in range(3):
        assert json.loads((tmp_path / f"{i}.json").read_text()) == [f"number {number}" for number in numbers]


def test_nothing_is_left_to_go_stale_after_a_kill(tmp_path):
    shards = MdsShards(write_mds(tmp_path / "data", compression="zstd"), tmp_path / "cache", "8kb")

    def endless() -> None:
        while True:
            for index in range(len(shards)):
                shards.read(index)
            (tmp_path / "read").touch()

    process = multiprocessing.get_context("fork").Process(target=endless)
    process.start()
    while not (tmp_path / "read").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert read_all(MdsShards(tmp_path / "data", tmp_path / "cache", "8kb")) == {}


# Damage. `broken` is shard 1 of about four.


@pytest.mark.parametrize("place", ["in place", "url"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip(path, path.stat().st_size - 300), "damaged: its xxh64 is not that of index.json"),
        (lambda path: flip(path, 9), "damaged: its xxh64"),  # an offset
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"1,\d+ bytes, index\.json says 1,\d+"),
        (lambda path: path.write_bytes(b""), r"shard\.00001\.mds: 0 bytes, index\.json says"),
        (lambda path: path.unlink(), r"shard\.00001\.mds: missing"),
    ],
)
def test_a_damaged_shard_costs_its_own_samples_every_time_they_are_asked_for(tmp_path, damage, message, place):
    folder = write_mds(tmp_path / "data")
    damage(folder / "shard.00001.mds")
    shards = MdsShards(folder if place == "in place" else folder.as_uri())
    for _ in range(2):
        errors = read_all(shards)
        assert list(errors) == list(shard_of(shards, 1))
        for text in errors.values():
            assert f"{shards.path}/shard.00001.mds" in text
    with pytest.raises(DataError, match=message):
        shards.read(shard_of(shards, 1)[0])


def test_a_damaged_compressed_shard(tmp_path):
    folder = write_mds(tmp_path / "data", compression="zstd")
    flip(folder / "shard.00001.mds.zstd", 100)
    shards = MdsShards(folder)
    assert set(read_all(shards)) == set(shard_of(shards, 1))
    shutil.rmtree(folder)
    unhashed = write_mds(folder, compression="zstd", hashes=[])
    flip(unhashed / "shard.00001.mds.zstd", 4, 100)
    shards = MdsShards(unhashed)
    errors = read_all(shards)
    assert set(errors) == set(shard_of(shards, 1))
    assert "cannot be decompressed" in errors[shard_of(shards, 1)[0]]


def test_a_url_of_a_folder_may_have_escapes(tmp_path):
    folder = write_mds(tmp_path / "100% of #1")
    assert read_all(MdsShards(folder.as_uri(), tmp_path / "cache")) == {}


def test_without_hashes_the_structure_is_still_checked(tmp_path):
    folder = write_mds(tmp_path / "data", hashes=[])
    shards = MdsShards(folder)
    assert read_all(shards) == {}
    flip(folder / "shard.00001.mds", 9)
    first = shard_of(shards, 1)[0]
    with pytest.raises(DataError, match=r"shard\.00001\.mds: the offsets of its samples are damaged"):
        MdsShards(folder).read(first)
    flip(folder / "shard.00001.mds", 9)
    begin = int.from_bytes((folder / "shard.00001.mds").read_bytes()[4:8], "little")
    flip(folder / "shard.00001.mds", begin)  # the size of a column of the first sample
    with pytest.raises(DataError, match=r"shard\.00001\.mds:0: cannot be decoded: .* bytes, its columns take"):
        MdsShards(folder).read(first)
    assert MdsShards(folder).read(first + 1)["label"] == (first + 1) % 3


def test_samples_with_their_own_checksums_need_no_look_at_the_whole_shard(tmp_path):
    folder = write_mds(tmp_path / "data")
    flip(folder / "shard.00001.mds", (folder / "shard.00001.mds").stat().st_size - 20)
    shards = MdsShards(folder, hashes=False)
    *others, last = shard_of(shards, 1)
    assert all(shards.read(index)["label"] == index % 3 for index in others)
    assert shards.read(last)["image"] != image(last)  # for the caller's own checksum
    (folder / "shard.00002.mds").write_bytes((folder / "shard.00002.mds").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"bytes, index\.json says"):
        shards.read(shard_of(shards, 2)[0])


def test_a_copy_that_was_damaged_in_the_cache_is_fetched_again(tmp_path):
    folder = write_mds(tmp_path / "data")
    assert read_all(MdsShards(folder.as_uri(), tmp_path / "cache")) == {}
    for path in (tmp_path / "cache").rglob("*.mds"):
        flip(path, path.stat().st_size - 30)
    assert read_all(MdsShards(folder.as_uri(), tmp_path / "cache")) == {}


# An index that lies.


def lie(part: str, value) -> callable:
    return lambda index: index["shards"][1].__setitem__(part, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["shards"][1]["raw_data"].update(bytes=5), r"bytes, index\.json says 5"),
        (lambda index: index["shards"][1]["raw_data"].update(basename="gone.mds"), r"gone\.mds: missing"),
        (lambda index: index["shards"][1]["raw_data"]["hashes"].update(xxh64="0" * 16), "its xxh64 is not that of"),
        (lie("samples", 3), r"shard\.00001\.mds: \d+ samples, index\.json says 3"),
        (lie("samples", 99), r"shard\.00001\.mds: \d+ samples, index\.json says 99"),
        (lie("column_sizes", [None, None, None]), "column_sizes .*, index.json says"),
    ],
)
def test_an_index_that_lies_of_a_shard_costs_that_shard(tmp_path, change, message):
    folder = write_mds(tmp_path / "data")
    change_index(folder, change)
    shards = MdsShards(folder)
    with pytest.raises(DataError, match=message):
        shards.read(shard_of(shards, 1)[0])
    assert shards.read(0)["label"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(version=3), "version 3 with"),
        (lambda index: index.update(shards=[]), "with 0 shards"),
        (lambda index: index.pop("shards"), "damaged: KeyError"),
        (lie("format", "csv"), "of format csv, mds"),
        (lie("samples", -1), "-1 samples"),
        (lie("samples", "many"), "damaged: ValueError"),
        (lie("raw_data", None), "damaged: TypeError"),
        (lie("column_names", ["image", "caption", "other"]), "different columns"),
        (lambda index: index["shards"][1]["raw_data"].update(basename="../../x.mds"), "not inside the folder"),
        (lambda index: [shard.update(samples=0) for shard in index["shards"]], "no samples"),
    ],
)
def test_an_index_that_cannot_be_right_is_refused(tmp_path, change, message):
    folder = write_mds(tmp_path / "data")
    change_index(folder, change)
    with pytest.raises(DataError, match=rf"index\.json: .*{message}"):
        MdsShards(folder)


def test_columns_that_could_run_code_are_refused(tmp_path):
    folder = write_mds(tmp_path / "data")
    change_index(folder, lambda i: [s.update(column_encodings=["pkl", "str", "int"]) for s in i["shards"]])
    with pytest.raises(ConfigError, match="holds pickled objects"):
        MdsShards(folder)


def test_missing_folders_and_damaged_indices(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        MdsShards(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.tar").touch()
    with pytest.raises(ConfigError, match=r"holds no index\.json \(found: x\.tar\)"):
        MdsShards(tmp_path / "empty")
    for data in (b"", b"{", b"[]", b"\xff\xfe"):
        (tmp_path / "empty" / "index.json").write_bytes(data)
        with pytest.raises(DataError, match=r"index\.json: damaged"):
            MdsShards(tmp_path / "empty")


def test_a_full_disk_costs_samples_and_nothing_half_written_is_used(tmp_path, monkeypatch):
    folder = write_mds(tmp_path / "data")
    shards = MdsShards(folder.as_uri(), tmp_path / "cache")

    def full(source, target) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:700])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mds.shutil, "copyfile", full)
        with pytest.raises(DataError, match=rf"{tmp_path}/cache: the disk is full while caching .*shard\.00000\.mds"):
            shards.read(0)
    shards._failed.clear()
    assert read_all(shards) == {}


def test_the_missing_package_is_one_line(tmp_path, monkeypatch):
    folder = write_mds(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "streaming", None)
    mds._engine.cache_clear()
    with pytest.raises(ConfigError, match=r"package mosaicml-streaming.*make setup-full") as caught:
        MdsShards(folder).read(0)
    assert "\n" not in str(caught.value)
    mds._engine.cache_clear()
