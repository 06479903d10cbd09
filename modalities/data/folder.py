"""Media files under a folder; captions beside them, or from the names of their folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.captions import CaptionRule, read_sidecars, refuse_unusable
from modalities.data.selection import SUFFIXES, Selection, digest, listing, missing


class FolderSource:
    """Files of one modality under a folder, at any depth, sorted by their relative path.

    The class of a file is the name of the folder it lies in. Captions come from `name.txt` (one per line) or
    `name.json` beside `name.png`, or as `captions` says. Files and folders whose name starts with a dot are skipped.

    Args:
        path: the folder.
        modality: decides the suffixes (selection.SUFFIXES).
        captions, selection: the fields of `selection` are those of `name.json`.

    Raises ConfigError for a folder that is missing or empty, for a selection that leaves nothing, and where captions
    are needed and the first files have none.
    """

    def __init__(
        self, path: Path, modality: str, captions: CaptionRule | None = None, selection: Selection | None = None
    ):
        self.path, self.modality = path, modality
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        if not path.exists():
            raise ConfigError(missing(path))
        if not path.is_dir():
            raise ConfigError(f"path: {path} is a file, a folder is needed")
        suffixes = SUFFIXES[modality]
        found = sorted(_files(path, "", suffixes))
        if not found:
            raise ConfigError(f"path: {path} holds no {modality} file ({' '.join(suffixes)}) (found: {listing(path)})")
        self.names = [name for name in found if self._takes(selection, name)]
        if not self.names:
            raise ConfigError(f"path: {path}: none of {len(found)} files is left by {selection.describe()}")
        refuse_unusable(self, f"{modality} files of {path}")

    def _takes(self, selection: Selection, name: str) -> bool:
        if not selection.fields:
            return selection.takes({}, name)
        try:
            return selection.takes(read_sidecars(self.path / name), name)
        except DataError:
            return True  # reading it reports the damaged sidecar

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Record:
        name = self.names[index]
        path = self.path / name
        label = path.parent.name
        fields = read_sidecars(path) if self.captions.reads_fields else {}
        return Record(
            key=name,
            origin=str(path),
            media=path,
            suffix=path.suffix.lower(),
            captions=self.captions.texts(fields, label, str(path)),
            label=label,
        )

    def labels(self) -> list[str]:
        folders = {name.rpartition("/")[0] for name in self.names}
        return sorted({(self.path / folder).name for folder in folders})

    def fingerprint(self) -> str:
        root = str(self.path)
        sizes = (str(os.stat(f"{root}/{name}").st_size) for name in self.names)
        return digest("folder", *self.names, *sizes)


def _files(root: Path, folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Paths below `root` of the files with these suffixes; `os.scandir` needs no look at each of a million files."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = folder + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, f"{name}/", suffixes)
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                yield name
