"""Media files under a folder; captions beside them, or from the names of their folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.sources.account import Account
from modalities.data.sources.captions import CaptionRule, refuse_unusable
from modalities.data.sources.config import SelectableConfig, not_one_of
from modalities.data.sources.fields import class_name, lookup
from modalities.data.sources.folder_scan import scan_folder
from modalities.data.sources.metadata import Metadata
from modalities.data.sources.names import composed
from modalities.data.sources.selection import SUFFIXES, Selection, digest, listing, missing
from modalities.data.sources.sidecars import CAPTION_LINES, SIDECARS, Beside, parse_sidecars


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SelectableConfig):
    """Media files in a folder, at `path`.

    Attributes:
        label_field: field of the class, or cls for that of a .cls beside the media; "" takes the names of the folders.
            `captions: label` makes either the caption.
        caption_lines: split (each line of a .txt is a caption of its own) or join (all are one).
    """

    kind: str = "folder"
    caption_lines: str = "split"

    def problems(self) -> list[str]:
        return super().problems() + not_one_of("caption_lines", self.caption_lines, CAPTION_LINES)

    def knows_labels(self) -> bool:
        return True

    def build(self, modalities: tuple[str, ...], root: Path) -> FolderSource:
        return FolderSource(
            root / Path(self.path).expanduser(),
            modalities[0],
            self.caption_rule(),
            self.selection(),
            self.label_field,
            self.caption_lines,
        )

    def layout(self, modality: str) -> str:
        media = " ".join(SUFFIXES.get(modality, ()))
        return f"files ({media}) at any depth, whose classes are the names of their folders"


class FolderSource:
    """Files of one modality under a folder, at any depth, sorted by their relative path.

    The class of a file is the name of the folder it lies in. Captions come from `name.txt` or `name.caption` (one per
    line), `name.json`, or the line of a metadata.jsonl that names the file, or as `captions` says. Links are followed;
    hidden files and folders are left out.

    Args:
        path: the folder.
        modality: decides the suffixes (selection.SUFFIXES).
        captions, selection: their fields are those of metadata.jsonl and of the sidecars, which win.
        label: field of the class, such as "cls"; "" takes the folder's name.
        lines: whether the lines of a text are captions of their own, see `parse_sidecars`.

    Raises ConfigError for a folder that is missing or empty, for a selection that leaves nothing, and where captions
    are needed and the first files have none.
    """

    def __init__(
        self,
        path: Path,
        modality: str,
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
        label: str = "",
        lines: str = "split",
    ):
        self.path, self.modality, self.label, self._lines = path, modality, label, lines
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        if not path.exists():
            raise ConfigError(missing(path))
        if not path.is_dir():
            raise ConfigError(f"path: {path} is a file, a folder is needed")
        suffixes = SUFFIXES[modality]
        scan = scan_folder(path, modality, suffixes)
        self.names, self._named, self._account = scan.names, scan.named, scan.account
        if not self.names:
            raise ConfigError(
                f"path: {path} holds no {modality} file ({' '.join(suffixes)}) (found: {listing(path)})"
                + "".join(f"\n{line}" for line in scan.account.lines())
            )
        self._suffixes = tuple(
            (suffix, tuple(written for written in (suffix, suffix.upper()) if written in scan.suffixes))
            for suffix in SIDECARS
        )
        self._metadata = Metadata(path, scan.metadata, self.names, self._account)
        if self.captions.reads_fields:
            self._account.uncaptioned = self._without_captions(scan.bare)
        found = len(self.names)
        if selection != Selection():
            rows = [row for row in range(found) if self._takes(selection, row)]
            if not rows:
                raise ConfigError(f"path: {path}: none of {found} files is left by {selection.describe()}")
            self._account.leave(f"{modality} file| (outside {selection.describe()})", count=found - len(rows))
            self.names = [self.names[row] for row in rows]
            self._metadata.take(rows)
        self._classes = self._find_classes()
        refuse_unusable(self, f"{modality} files of {path}")

    def _without_captions(self, bare: list[str]) -> int:
        """How many of the files without a sidecar no line of a table names."""
        if not self._metadata.tables:
            return len(bare)
        named = {name for row, name in enumerate(self.names) if self._metadata.has(row)}
        return sum(name not in named for name in bare)

    def _takes(self, selection: Selection, row: int) -> bool:
        if not selection.fields:
            return selection.takes({}, self.names[row])
        beside = self._beside(row)
        # Where something cannot be read the file stays, and reading it reports that.
        return beside.problem is not None or selection.takes(beside.fields, self.names[row])

    def _beside(self, row: int) -> Beside:
        """The fields of one file."""
        name, found = self.names[row], []
        media = self.path / name
        problem: DataError | None = None
        for suffix, written in self._suffixes:
            named = self._named.get(name, {}).get(suffix)
            paths = [media.with_suffix(each) for each in written] + ([self.path / named] if named else [])
            try:
                if path := next((path for path in paths if path.is_file()), None):
                    found.append((suffix, path.read_bytes(), str(path)))
            except OSError as error:
                problem = problem or DataError(f"{media}: sidecar cannot be read: {error}")
        fields: dict[str, object] = {}
        try:
            fields = self._metadata.fields(row)
        except DataError as error:
            problem = problem or error
        beside = parse_sidecars(found, self._lines)
        return Beside(fields | beside.fields, problem or beside.problem)

    def _find_classes(self) -> list[str]:
        if not self.label:
            folders = {name.rpartition("/")[0] for name in self.names}
            return sorted({composed((self.path / folder).name) for folder in folders})
        found = (class_name(lookup(self._beside(row).fields, self.label)) for row in range(len(self.names)))
        return sorted({name for name in found if name is not None})

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Record:
        name = self.names[index]
        path = self.path / name
        beside = self._beside(index) if self.captions.reads_fields or self.label else Beside()
        label = class_name(lookup(beside.fields, self.label)) if self.label else composed(path.parent.name)
        if label is None and beside.problem:
            raise beside.problem
        return Record(
            key=name,
            origin=str(path),
            media=path,
            suffix=path.suffix.lower(),
            captions=self.captions.texts(beside.fields, label, str(path), beside.problem),
            label=label,
        )

    def labels(self) -> list[str]:
        return self._classes

    def account(self) -> Account:
        return self._account

    def fingerprint(self) -> str:
        root = str(self.path)
        sizes = (str(_size(f"{root}/{name}")) for name in self.names)
        return digest("folder", *self.names, *sizes)


def _size(path: str) -> int:
    """In bytes; -1 for a file that is gone since."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
