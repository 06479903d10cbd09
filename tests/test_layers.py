"""Rules about the code itself: which room may import which, how long a file may be, and what it must not name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "autoencoders", "modalities", "configs", "robotics", "tools", "tests")
LONGEST = 450

# Absolute paths of somebody's machine: home folders, mounted work folders, temporary folders.
MACHINE_PATH = re.compile(r"""(?:(?<=["'\s(=])|^)/(?:home|Users|root|mnt|srv|tmp|scratch)(?:/|\b)""", re.MULTILINE)


def files() -> list[Path]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*"))]
    return [path for path in found if path.suffix in (".py", ".yaml") and path != Path(__file__).resolve()]


def test_rooms_import_downwards_only():
    linter = pytest.importorskip("importlinter.cli", reason="import-linter is not installed (extra `dev`)")
    program = f"import sys; from {linter.__name__} import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_file_is_too_long():
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files()}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}
    assert len(lengths) > 60  # the walk finds the code


def test_no_file_names_a_path_of_one_machine():
    found = {}
    for path in files():
        for match in MACHINE_PATH.finditer(path.read_text()):
            found.setdefault(str(path.relative_to(ROOT)), []).append(match.group())
    assert found == {}


@pytest.mark.parametrize("text", ['open("/home/me/x")', "path: /Users/me/data", "run=/tmp/run", "/root"])
def test_machine_paths_are_recognized(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["a/home/b", "https://x.org/tmp/y", "x0 / work", "photos/work/"])
def test_other_text_is_not_taken_for_a_machine_path(text):
    assert not MACHINE_PATH.search(text)
