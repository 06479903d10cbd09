"""Output places, tried before the work that is to be written there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from core.errors import ConfigError


def output_folder(path: Path, option: str) -> Path:
    """`path`, which is or can become a folder that takes files; nothing is left behind.

    Args:
        option: how the user names it, such as --out.

    Raises:
        ConfigError: it is a file, cannot be made, or takes no file (no permission, a read-only or full disk).
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)  # another process may have made it by now
                made.append(folder)
        with tempfile.TemporaryFile(dir=path) as trial:
            trial.write(b"\0" * 4096)
            trial.flush()
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{option}: {_blocking(path)} is no folder; give one, or a name for a new one") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{option}: {path} cannot be written: {reason}") from error
    finally:
        for folder in reversed(made):
            try:
                folder.rmdir()
            except OSError:  # another process uses it already
                break
    return path


def _blocking(path: Path) -> Path:
    """The part of the path that is a file, or a link to nothing."""
    return next(part for part in (*reversed(path.parents), path) if not part.is_dir())
