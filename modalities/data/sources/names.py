"""Names of files: which are not data, which belong together, and why a file of another suffix is left out."""

from __future__ import annotations

import unicodedata

from modalities.data.sources.account import Account
from modalities.media.suffixes import READERS, readable, unreadable

# What operating systems and storage boxes leave in folders of media; names that begin with a dot are hidden as well.
_SYSTEM = {
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
INDEX_FOLDER = ".selfflow-index"  # our own, beside tars
_TABLES = {".parquet": "parquet", ".tar": "webdataset", ".mds": "mds"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by a system and no data."""
    return name.startswith(".") or name.lower() in _SYSTEM


def in_hidden(path: str) -> bool:
    """Whether a path below the folder of the data is hidden, or leads through such a folder."""
    return any(is_hidden(part) for part in path.split("/") if part not in ("", ".", ".."))


def leave_hidden(account: Account, name: str, folder: bool) -> None:
    """Count a hidden file or folder, but not our own index."""
    if name.rpartition("/")[2] != INDEX_FOLDER:
        account.leave("hidden or system folder|" if folder else "hidden or system file|", name)


def composed(name: str) -> str:
    """In one Unicode form (NFC): the same name reads e + accent on a Mac and as one character elsewhere."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem_of(name: str) -> str:
    """The path of a file without the last suffix of its name."""
    folder, slash, file = name.rpartition("/")
    dot = file.rfind(".")
    return folder + slash + (file[:dot] if dot > 0 else file)


def suffix_of(name: str) -> str:
    """The last suffix of a file's name, in lower case."""
    file = name.rpartition("/")[2]
    dot = file.rfind(".")
    return file[dot:].lower() if 0 < dot < len(file) - 1 else ""


def other_suffix(name: str, modality: str) -> str:
    """Why a file is not a record of a modality, by its suffix."""
    suffix = suffix_of(name)
    if package := unreadable(modality).get(suffix):
        return f"{suffix} (no decoder here: {package})"
    for other in READERS:
        if other != modality and (suffix in readable(other) or suffix in unreadable(other)):
            return f"{suffix} ({other})"
    if suffix in _TABLES:
        return f"{suffix} (read by `kind: {_TABLES[suffix]}`)"
    if not suffix:
        return "file| without a suffix"
    plain = suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 10 and not suffix[1:].isdigit()
    return f"{suffix} (unknown)" if plain else "file| of unknown suffixes"
