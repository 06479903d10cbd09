"""Output places are tried before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from core.durable import writing
from core.errors import ConfigError, DataError
from tools.outputs import output_folder


def test_a_folder_and_a_name_for_one_are_taken_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "kept.txt").write_text("x")
    assert output_folder(tmp_path, "--out") == tmp_path
    assert output_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_relative_names_and_links_to_folders_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert output_folder(Path("link"), "--out") == Path("link")
    assert output_folder(Path("new") / "er", "--out") == Path("new/er")
    assert output_folder(Path("."), "--out") == Path(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("inside", ["", "below", "below/more"])
def test_a_file_in_the_way_is_named(inside, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match=f"--out: {tmp_path / 'taken'} is no folder"):
        output_folder(tmp_path / "taken" / inside, "--out")
    assert (tmp_path / "taken").read_text() == "x"


def test_names_that_no_folder_can_have(tmp_path):
    for name in ("x" * 300, "zero\0byte"):
        with pytest.raises(ConfigError, match=r"--results: .*cannot be written"):
            output_folder(tmp_path / "new" / name, "--results")
        assert list(tmp_path.iterdir()) == []


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"--out: .*link is no folder"):
        output_folder(tmp_path / "link", "--out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files")
def test_a_file_system_that_takes_no_files_is_refused():
    with pytest.raises(ConfigError, match="cannot be written"):
        output_folder(Path("/proc/self"), "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        output_folder(tmp_path, "--out")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_what_cannot_be_written_is_one_line(error):
    line = r"^runs/a: cannot be written: .*No space left on device; parts are kept$"
    with pytest.raises(DataError, match=line), writing(Path("runs/a"), "; parts are kept"):
        raise error
