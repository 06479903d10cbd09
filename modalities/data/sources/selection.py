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
from modalities.data.sources.account import Account
from modalities.data.sources.fields import class_name, lookup
from modalities.data.sources.names import in_hidden, is_hidden, leave_hidden
from modalities.media.suffixes import READERS, readable

# What a source takes. Suffixes of media that nothing here decodes: `modalities.media.suffixes.unreadable`.
SUFFIXES: dict[str, tuple[str, ...]] = {modality: readable(modality) for modality in READERS}

SPLITS = ("all", "train", "test")


@dataclass(frozen=True)
class Selection:
    """A filter over the fields of a record (columns of a table, members of a JSON object), and a held-out part.

    Attributes:
        where: field -> the value it must have, compared as text. Names may be dotted, see `lookup`.
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
        for name, wanted in self.where.items():
            value = lookup(fields, name)
            if wanted not in (str(value), class_name(value)):
                return False
        if self.split == "all":
            return True
        value = str(lookup(fields, self.holdout_key)) if self.holdout_key else record_key
        # A hash of the value, so that adding or removing records moves no other record to the other side.
        held_out = key("holdout", value) / 2**63 < self.holdout
        return held_out == (self.split == "test")

    def describe(self) -> str:
        """What was asked of the records, for messages."""
        parts = [f"{name} == {value}" for name, value in self.where.items()]
        if self.split != "all":
            parts.append(f"split {self.split} of a hold-out of {self.holdout:g}")
        return ", ".join(parts) or "everything"


def held_out_rows(block: str, count: int, share: float) -> np.ndarray:
    """(count,) bool: which rows of a block of records are held out, for records that are known by their place alone.

    A hash of the block's name and the row, as `Selection.takes` hashes keys, but fast enough for 200 million.
    """
    return mix_array(np.arange(count, dtype=np.uint64), key("holdout", block)) < np.uint64(share * 2**64)


def locate(path: str, root: Path, suffix: str) -> tuple[list[Path], Account]:
    """Files of a path that may hold wildcards (`shards/*.tar`, `**`), sorted; a folder stands for `*suffix` in it.

    Parts of the path that exist as they are written hold no wildcards, so that a folder may be named `[set]`.

    Returns the files, and what else lies there. Raises ConfigError for a path that leads to nothing, naming what lies
    there instead.
    """
    if not path:
        raise ConfigError(f"path: empty, a {suffix} path is needed")
    full, account = root / Path(path).expanduser(), Account()
    if full.is_file():
        return [full], account
    if full.is_dir():
        found = _in_folder(full, suffix, account)
        if not found:
            raise ConfigError(f"path: {full} holds no {suffix} file (found: {listing(full)})")
        return found, account
    fixed, rest = Path(full.parts[0]), list(full.parts[1:])
    while rest and (fixed / rest[0]).exists():
        fixed /= rest.pop(0)
    matched: list[Path] = []
    for name in glob.glob("/".join(rest), root_dir=fixed, recursive=True, include_hidden=True) if rest else []:
        if in_hidden(name) and not any(is_hidden(part) for part in rest):
            leave_hidden(account, name, folder=False)
        elif (fixed / name).is_file():
            matched.append(fixed / name)
    if not matched:
        raise ConfigError(missing(full))
    named = [each for each in matched if each.name.lower().endswith(suffix)] or matched  # or tars are called otherwise
    for other in set(matched).difference(named):
        account.leave(f"{other.suffix.lower() or 'file|'} (not {suffix})", str(other.relative_to(fixed)))
    return sorted(named), account


def _in_folder(folder: Path, suffix: str, account: Account) -> list[Path]:
    """The files of a suffix in a folder, sorted, and a count of what else lies there."""
    found = []
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"path: {folder} cannot be opened: {error}") from error
    for path in paths:
        if is_hidden(path.name):
            leave_hidden(account, path.name, path.is_dir())
        elif path.is_dir():
            account.leave(f"folder| (a wildcard such as **/*{suffix} looks into them)", path.name)
        elif not path.is_file():
            account.leave("broken link|", path.name)
        elif not path.name.lower().endswith(suffix):
            account.leave(f"{path.suffix.lower() or 'file|'} (not {suffix})", path.name)
        else:
            found.append(path)
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
    try:
        names = sorted(each.name for each in folder.iterdir() if each.name[0] != ".") if folder.is_dir() else []
    except OSError as error:
        return str(error)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def several(paths: list[Path]) -> str:
    """Files, for messages."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def stems(paths: list[Path]) -> list[str]:
    """The file names without suffix, each with its number where two are equal, so that keys stay unique."""
    names = [path.stem for path in paths]
    count = Counter(names)
    return [f"{name}-{i}" if count[name] > 1 else name for i, name in enumerate(names)]


def digest(*parts: str) -> str:
    """16 hexadecimal digits for a source's fingerprint."""
    return f"{key('source', *parts):016x}"
