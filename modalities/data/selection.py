"""Which files and which of their records a source takes: suffixes, paths with wildcards, filters and hold-out."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.errors import ConfigError, nearest
from core.keys import key
from modalities.data.order import mix_array

SUFFIXES: dict[str, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "video": (
        *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"),
        *(".3g2", ".3gp", ".asf", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2"),
        *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob"),
        ".wmv",
    ),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".m4a"),
}

SPLITS = ("all", "train", "test")


@dataclass(frozen=True)
class Selection:
    """A filter over the fields of a record (columns of a table, members of a JSON object), and a held-out part.

    Attributes:
        where: field -> the value it must have, compared as text.
        split: "all", or one side of the hold-out.
        holdout: share of the keys that belong to "test", in [0, 1).
        holdout_key: field whose value decides the side, so that records that share it stay together; "": the
            record's own key.
    """

    where: dict[str, str] = field(default_factory=dict)
    split: str = "all"
    holdout: float = 0.0
    holdout_key: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that must be known to decide."""
        extra = (self.holdout_key,) if self.holdout_key and self.split != "all" else ()
        return tuple(dict.fromkeys((*self.where, *extra)))

    def takes(self, fields: Mapping[str, object], record_key: str) -> bool:
        """Whether a record is taken. Fields that are missing match nothing and are held out by the text 'None'."""
        if any(str(fields.get(name)) != value for name, value in self.where.items()):
            return False
        if self.split == "all":
            return True
        value = str(fields.get(self.holdout_key)) if self.holdout_key else record_key
        # A hash of the value, so that adding or removing records moves no other record to the other side.
        held_out = key("holdout", value) / 2**63 < self.holdout
        return held_out == (self.split == "test")

    def describe(self) -> str:
        """For messages: what was asked of the records."""
        parts = [f"{name} == {value}" for name, value in self.where.items()]
        if self.split != "all":
            parts.append(f"split {self.split} of a hold-out of {self.holdout:g}")
        return ", ".join(parts) or "everything"


def held_out_rows(block: str, count: int, share: float) -> np.ndarray:
    """(count,) bool: which rows of a block of records are held out, for records that are known by their place alone.

    A hash of the block's name and the row, as `Selection.takes` hashes keys, but fast enough for 200 million.
    """
    return mix_array(np.arange(count, dtype=np.uint64), key("holdout", block)) < np.uint64(share * 2**64)


def locate(path: str, root: Path, suffix: str = "") -> list[Path]:
    """Files of a path that may hold wildcards (`shards/*.tar`, `**`), sorted; a folder stands for `*suffix` in it.

    Raises ConfigError for a path that leads to nothing, naming what lies there instead.
    """
    if not path:
        raise ConfigError(f"path: empty, a {suffix or 'file'} path is needed")
    full = root / Path(path).expanduser()
    if full.is_file():
        return [full]
    if full.is_dir():
        found = sorted(full.glob(f"*{suffix}"))
        if not found:
            raise ConfigError(f"path: {full} holds no {suffix} file (found: {listing(full)})")
        return found
    found = sorted(Path(name) for name in glob.glob(str(full), recursive=True) if Path(name).is_file())
    if not found:
        raise ConfigError(missing(full))
    return found


def missing(path: Path) -> str:
    """The message for a path that leads to nothing."""
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    names = [each.name for each in parent.iterdir()] if parent.is_dir() else []
    return f"path: {path} does not exist ({parent} holds: {listing(parent)}).{nearest(path.name, names)}"


def listing(folder: Path, limit: int = 8) -> str:
    """A few names of a folder, for messages."""
    names = sorted(each.name for each in folder.iterdir() if each.name[0] != ".") if folder.is_dir() else []
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def stems(paths: list[Path]) -> list[str]:
    """The file names without suffix, each with its number where two are equal, so that keys stay unique."""
    names = [path.stem for path in paths]
    count = Counter(names)
    return [f"{name}-{i}" if count[name] > 1 else name for i, name in enumerate(names)]


def digest(*parts: str) -> str:
    """16 hexadecimal digits for a source's fingerprint."""
    return f"{key('source', *parts):016x}"
