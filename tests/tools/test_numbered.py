"""Names of generated files: free ones, also between processes; whole files or none."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from core.errors import DataError
from tools.generate.numbered import next_number, write_grid_file, write_numbered


def write_text(text: str, path: Path) -> Path:
    path = path.with_name(path.name + ".txt")
    path.write_text(text)
    return path


def write_texts(text: str, path: Path) -> list[Path]:
    return [write_text(text, path)]


def write_many(folder: Path, writer: int) -> list[str]:
    number, names = next_number(folder), []
    for i in range(40):
        text = f"{writer}/{i}"
        number, (path,) = write_numbered(folder, "same", number, {"text": text}, partial(write_texts, text))
        grid = write_grid_file(folder, {"text": text}, partial(write_text, text))
        names += [path.name, grid.name]
        number += 1
    return names


def test_two_processes_in_one_folder_do_not_meet(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        both = list(pool.map(partial(write_many, tmp_path), range(2)))
    assert len({*both[0], *both[1]}) == 160
    for writer, names in enumerate(both):
        for place, name in enumerate(names):
            text = f"{writer}/{place // 2}"
            assert (tmp_path / name).read_text() == text
            assert json.loads((tmp_path / name).with_suffix(".json").read_text()) == {"text": text}
    assert len(list(tmp_path.iterdir())) == 320


def test_numbers_go_on_behind_the_highest(tmp_path):
    assert next_number(tmp_path / "absent") == 0
    for name in ("0003-a.png", "12345-b.mp4", "99-c.png", "grid-7.png", "notes.txt"):
        (tmp_path / name).write_text("")
    assert next_number(tmp_path) == 12346


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("System error.")])
def test_what_cannot_be_written_leaves_nothing(tmp_path, error):
    def full(path: Path) -> list[Path]:
        write_text("first", path.with_name(path.name + "-video"))
        raise error

    with pytest.raises(DataError, match=r"cannot be written: (No space left on device|System error\.)"):
        write_numbered(tmp_path, "a", 0, {}, full)
    assert list(tmp_path.iterdir()) == []
