"""The cache of files: complete or absent, within its limit, whoever is killed or runs out of disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from core.user_cache import user_cache
from modalities.data.sources.cache import FileCache, parse_size

FORK = multiprocessing.get_context("fork")


def writes(data: bytes):
    return lambda part: part.write_bytes(data)


def refuses(_part: Path) -> None:
    raise AssertionError("fetched although it is here")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_fetched_once_and_kept(tmp_path):
    cache = FileCache(tmp_path / "cache")
    path = cache.get("a/b.mds", 3, writes(b"abc"))
    assert path == tmp_path / "cache" / "a" / "b.mds"
    assert path.read_bytes() == b"abc"
    assert cache.get("a/b.mds", 3, refuses) == path
    assert FileCache(tmp_path / "cache", 10).get("a/b.mds", 3, refuses) == path
    cache.drop("a/b.mds")
    assert cache.get("a/b.mds", 3, writes(b"new")).read_bytes() == b"new"


@pytest.mark.parametrize("by_age", ["abc", "cab", "bca"])
def test_the_least_recently_used_files_leave_first(tmp_path, by_age):
    cache = FileCache(tmp_path, 30)
    for name in "abc":
        cache.get(name, 10, writes(name.encode() * 10))
    for age, name in zip((300, 200, 100), by_age, strict=True):
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache.get(by_age[0], 10, refuses)  # a use
    cache.get("d", 10, writes(b"d" * 10))
    assert files(tmp_path) == {".lock", by_age[0], by_age[2], "d"}
    cache.get("e", 25, writes(b"e" * 25))
    assert files(tmp_path) == {".lock", "e"}


def test_what_another_process_is_fetching_stays(tmp_path):
    cache = FileCache(tmp_path, 30)
    for name in ("a.mds.part", "a.mds.part.zip"):
        (tmp_path / name).write_bytes(b"a" * 10)
    cache.get("b.mds", 25, writes(b"b" * 25))
    assert files(tmp_path) == {".lock", "a.mds.part", "a.mds.part.zip", "b.mds"}
    for name in ("a.mds.part", "a.mds.part.zip"):
        os.utime(tmp_path / name, (0, 0))  # of a process that is gone
    cache.get("c.mds", 25, writes(b"c" * 25))
    assert files(tmp_path) == {".lock", "c.mds"}


def test_the_limit_counts_the_folder_whoever_filled_it(tmp_path):
    FileCache(tmp_path).get("other/old", 100, writes(b"o" * 100))
    os.utime(tmp_path / "other" / "old", (0, 0))
    FileCache(tmp_path, 50).get("mine/new", 10, writes(b"n" * 10))
    assert files(tmp_path) == {".lock", "mine/new"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder_and_leaves_nothing_half_written(tmp_path, number):
    def half(part: Path) -> None:
        part.write_bytes(b"half")
        part.with_name(part.name + ".tmp").write_bytes(b"of a downloader")
        raise OSError(number, "no more")

    cache = FileCache(tmp_path / "cache")
    with pytest.raises(DataError, match=r"cache: the disk is full while caching a\.mds \(1,000 bytes\)"):
        cache.get("a.mds", 1000, half)
    assert files(tmp_path / "cache") == {".lock"}
    assert cache.get("a.mds", 3, writes(b"abc")).read_bytes() == b"abc"


def test_a_failed_fetch_leaves_nothing_and_its_error_is_kept(tmp_path):
    def bad(part: Path) -> None:
        part.write_bytes(b"wrong")
        raise DataError("a.mds: damaged")

    with pytest.raises(DataError, match=r"a\.mds: damaged"):
        FileCache(tmp_path).get("a.mds", 5, bad)
    assert files(tmp_path) == {".lock"}
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file.*cannot be cached"):
        FileCache(tmp_path / "file").get("a.mds", 5, refuses)


def test_a_fetch_that_is_killed_is_begun_again_by_another(tmp_path):
    def never_ends(part: Path) -> None:
        part.write_bytes(b"half")
        (tmp_path / "begun").touch()
        time.sleep(60)

    process = FORK.Process(target=FileCache(tmp_path / "cache").get, args=("a.mds", 8, never_ends))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert files(tmp_path / "cache") == {".lock", "a.mds.part"}
    path = FileCache(tmp_path / "cache").get("a.mds", 8, writes(b"complete"))
    assert path.read_bytes() == b"complete"
    assert files(tmp_path / "cache") == {".lock", "a.mds"}


def _count(folder: Path, names: list[str]) -> None:
    def fetch(part: Path) -> None:
        with open(folder / "log", "a") as log:
            log.write(f"{part.name}\n")
        time.sleep(0.05)
        part.write_bytes(b"x" * 10)

    for name in names:
        FileCache(folder / "cache", 1000).get(name, 10, fetch)


def test_processes_that_want_one_file_fetch_it_once(tmp_path):
    names = [f"{i}.mds" for i in range(6)]
    processes = [FORK.Process(target=_count, args=(tmp_path, names)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split()) == [f"{name}.part" for name in names]


def test_sizes():
    assert [parse_size(text) for text in ("4096", "1 KB", "1.5mb", "100gb", "2T")] == [
        4096,
        1024,
        3 * 2**19,
        100 * 2**30,
        2**41,
    ]
    for text in ("", "0", "lots", "-1gb", "1 pb", "1.2.3mb"):
        with pytest.raises(ConfigError, match="is not a size"):
            parse_size(text)


def test_the_users_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("mds") == tmp_path / "selfflow" / "mds"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("mds") == tmp_path / "home" / ".cache" / "selfflow" / "mds"
