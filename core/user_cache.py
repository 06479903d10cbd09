"""Where this program keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """A folder of this program under the user's cache directory (XDG_CACHE_HOME, else ~/.cache); not made yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfflow" / name
