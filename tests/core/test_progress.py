"""Progress bars where they go: files, terminals of any width, nowhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios

import pytest

from core import progress
from core.progress import ProgressBar, quiet


def written(steps: int = 5, **settings) -> str:
    file = io.StringIO()
    with ProgressBar(total=steps, unit="step", file=file, desc="image", **settings) as bar:
        for _ in range(steps):
            bar.set_postfix_str("loss 1.5", refresh=False)
            bar.update()
    return file.getvalue()


def test_a_file_gets_few_short_lines_and_the_last_one():
    text = written(1000)
    lines = text.splitlines()
    assert "\r" not in text
    assert len(lines) == 1
    assert lines[0].startswith("image: 1000/1000 step, 00:00 gone, 00:00 left")
    assert lines[0].endswith("loss 1.5")
    assert len(lines[0]) < 100


def test_a_file_gets_a_line_each_time_that_enough_time_is_gone(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    lines = written(3, miniters=1).splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


def test_quiet_writes_nothing_and_ends():
    with quiet(True):
        assert written() == ""
        with quiet(False):
            assert written() == ""
    assert written() != ""


@pytest.mark.parametrize(("columns", "bar"), [(100, True), (40, False), (20, False)])
def test_a_terminal_gets_one_line_no_wider_than_it_is(columns, bar):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(theirs, "w") as file:
        with ProgressBar(total=3, unit="step", file=file, desc="image", mininterval=0, miniters=1) as shown:
            for _ in range(3):
                shown.update()
        file.flush()
        text = ""
        while select.select([ours], [], [], 0.2)[0]:
            text += os.read(ours, 1 << 16).decode()
    os.close(ours)
    states = [state for state in text.replace("\x1b[A", "").split("\r") if state.strip()]
    assert max(len(state.rstrip("\n")) for state in states) <= columns
    assert ("█" in text) == bar
    assert text.count("\n") <= 2


class OutStream(io.StringIO):
    """As ipykernel's: no terminal, though what it shows can be overwritten."""


OutStream.__module__ = "ipykernel.iostream"


def test_a_notebook_gets_one_line_that_is_overwritten():
    file = OutStream()
    with ProgressBar(total=3, unit="step", file=file, desc="image", mininterval=0, miniters=1) as bar:
        for _ in range(3):
            bar.update()
    assert file.getvalue().count("\n") == 1
    states = [state for state in file.getvalue().split("\r") if state.strip()]
    assert list(dict.fromkeys(re.findall(r"\d/3", " ".join(states)))) == ["0/3", "1/3", "2/3", "3/3"]
