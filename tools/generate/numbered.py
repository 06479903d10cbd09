"""Generated files under names that nothing has yet, also while other processes write into the same folder.

0007-a-red-circle.json     everything that made it; created first and exclusively, which reserves the name
0007-a-red-circle.png      written aside and renamed, so that it is whole; several where no format holds all parts
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from core.errors import DataError


def write_numbered(
    folder: Path, name: str, first: int, about: dict, write: Callable[[Path], list[Path]]
) -> tuple[int, list[Path]]:
    """Write one sample, and its .json, under the first free number from `first` on.

    Args:
        name: after the number; letters, digits and hyphens.
        about: of the .json.
        write: called with a path without suffix; adds one, or more to the name, and returns the paths that it wrote.

    Returns:
        The number and the files.

    Raises:
        DataError: they cannot be written; neither is left.
    """
    names = ((number, f"{number:04d}-{name}") for number in count(first))
    return _write(folder, names, about, write)


def write_grid_file(folder: Path, about: dict, write: Callable[[Path], Path]) -> Path:
    """Like `write_numbered`: grid.png, grid-2.png, grid-3.png, ..."""
    names = ((number, f"grid-{number}" if number > 1 else "grid") for number in count(1))
    free = ((number, name) for number, name in names if not (folder / f"{name}.png").exists())
    return _write(folder, free, about, lambda path: [write(path)])[1][0]


def next_number(folder: Path) -> int:
    """One more than the highest number that a file in the folder begins with; 0 in a new folder."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return 1 + max((int(found[1]) for name in names if (found := re.match(r"(\d{4,})-", name))), default=-1)


def _write(
    folder: Path, names: Iterable[tuple[int, str]], about: dict, write: Callable[[Path], list[Path]]
) -> tuple[int, list[Path]]:
    with ExitStack() as undo:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number, note = next(taken for taken in map(partial(_take, folder), names) if taken is not None)
            undo.callback(note.unlink, missing_ok=True)
            note.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            aside = folder / f".{note.stem}.writing"  # writers add their suffix to what is none of theirs
            undo.callback(_remove, folder, f"{aside.name}*")
            written, paths = write(aside), []
            for part in written:
                path = folder / f"{note.stem}{part.name.removeprefix(aside.name)}"
                os.replace(part, path)
                undo.callback(path.unlink, missing_ok=True)
                paths.append(path)
        except (OSError, RuntimeError) as error:  # soundfile raises RuntimeErrors on a full disk
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{folder}: cannot be written: {reason}") from error
        undo.pop_all()
    return number, paths


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def _take(folder: Path, named: tuple[int, str]) -> tuple[int, Path] | None:
    """Create the .json of a name; None where another process has it."""
    number, name = named
    note = folder / f"{name}.json"
    try:
        note.open("x").close()
    except FileExistsError:
        return None
    return number, note
