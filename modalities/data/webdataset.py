"""Samples inside tar files, found by an index of the headers and read by their offsets.

The layout is WebDataset's: members `key.mp4`, `key.json`, `key.txt` are one sample, where the key is the member's
path up to the first dot of its file name. Any tar with media files in it reads the same way, so a robot data set's
`videos/**/episode_000000.mp4` becomes video records by `members` and a constant caption.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.captions import CaptionRule, parse_json, parse_lines, refuse_unusable
from modalities.data.order import Blocks
from modalities.data.selection import SUFFIXES, Selection, digest, stems
from modalities.data.tar_index import TarIndex, TarTable, key_of, read_table, scan


class WebdatasetSource:
    """Random access to the samples of one or more uncompressed tars.

    Memory holds a few numbers for each tar and the tables of those in use; no file is held open, so a source may be
    pickled or carried over a fork.

    Of several tars one that is damaged gives the samples before the damage and one record that cannot be used, which
    says so when training meets it; a single one is refused.

    Args:
        paths: tars, in order.
        modality: decides the suffixes of the media (selection.SUFFIXES).
        members: only media whose path inside the tar matches this pattern (`*` also matches `/`); "" takes all.
        label: field of the JSON member that holds the class; "" for none.
        captions, selection: their fields are those of `key.json`; the lines of `key.txt` are the field "caption".
        shuffle_blocks: tars that the order reads at a time.

    Raises ConfigError for tars without fitting media, a selection that leaves nothing, or no captions where they are
    needed; DataError for a damaged, truncated or compressed tar, and for two media of one sample.
    """

    def __init__(
        self,
        paths: list[Path],
        modality: str,
        members: str = "",
        label: str = "",
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
        shuffle_blocks: int = 16,
    ):
        self.paths, self.modality, self.label, self.shuffle_blocks = paths, modality, label, shuffle_blocks
        self._stems = stems(paths)
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        if self.captions.mode == "label" and not label and not self.captions.constant:
            raise ConfigError("captions: 'label' needs label_field, the field of the JSON members with the class name")
        suffixes = SUFFIXES[modality]
        make = partial(_table, suffixes=suffixes, pattern=members, label=label, selection=selection)
        self._index = TarIndex(make, *suffixes, members, label, repr(selection))
        summaries = self._index.summaries(paths)
        if len(paths) == 1 and summaries[0].damage:
            raise DataError(summaries[0].damage)
        where = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        found = sum(summary.found for summary in summaries)
        if not found:
            raise ConfigError(_nothing(paths, where, modality, members))
        self._ends = np.cumsum([summary.samples for summary in summaries], dtype=np.int64)
        if not self._ends[-1]:
            raise ConfigError(f"path: {where}: none of {found} samples is left by {selection.describe()}")
        self._digests = [summary.digest for summary in summaries]
        self._names = sorted({name for summary in summaries for name in summary.labels})
        self._tables: OrderedDict[int, TarTable] = OrderedDict()
        refuse_unusable(self, f"samples of {where}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self) -> Blocks:
        return Blocks(np.diff(self._ends, prepend=0), self.shuffle_blocks)

    def read(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise DataError(f"record {index} of {len(self)}")
        tar = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[tar - 1] if tar else 0)
        table, path = self._table(tar), self.paths[tar]
        if row == len(table.samples):
            raise DataError(table.damage)
        name, sample = table.name(row), table.samples[row]
        origin = f"{path}:{name}"
        fields = _fields(path, table, row) if self.label or self.captions.reads_fields else {}
        label = str(fields[self.label]) if self.label and fields.get(self.label) is not None else None
        texts = self.captions.texts(fields, label, origin)
        # Names repeat from tar to tar, so the tar's name is part of the key.
        key = f"{self._stems[tar]}/{key_of(name)}"
        media = _bytes(path, name, int(sample["media"]), int(sample["media_size"]))
        return Record(key, origin, media, Path(name).suffix.lower(), texts, label)

    def _table(self, tar: int) -> TarTable:
        if tar not in self._tables:
            table = self._index.load(self.paths[tar], self._digests[tar])
            if len(self._tables) >= 2 * self.shuffle_blocks:
                self._tables.popitem(last=False)
            self._tables[tar] = table
        self._tables.move_to_end(tar)
        return self._tables[tar]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tables": OrderedDict()}

    def labels(self) -> list[str]:
        return self._names

    def fingerprint(self) -> str:
        files = (f"{path.name}:{part.hex()}" for path, part in zip(self.paths, self._digests, strict=True))
        return digest("webdataset", "2", *files)


def _table(path: Path, suffixes: tuple[str, ...], pattern: str, label: str, selection: Selection) -> TarTable:
    """The samples of one tar that a selection takes, with their classes."""
    table = read_table(path, suffixes, pattern)
    if not selection.fields and not label and selection.split == "all":
        return table
    taken, labels = [], set()
    for row in range(len(table.samples)):
        fields: dict[str, object] | None = {}
        if selection.fields or label:
            try:
                fields = _fields(path, table, row)
            except DataError:
                fields = None  # reading it reports the damaged member
        if fields is None or selection.takes(fields, key_of(table.name(row))):
            taken.append(row)
            if fields and label and fields.get(label) is not None:
                labels.add(str(fields[label]))
    names = [table.name(row).encode("utf-8", "surrogateescape") for row in taken]
    samples = table.samples[taken]
    samples["name"] = np.cumsum([len(name) for name in names])
    return replace(table, samples=samples, names=b"".join(names), labels=tuple(sorted(labels)))


def _fields(path: Path, table: TarTable, row: int) -> dict[str, object]:
    """What lies beside the media: the JSON member's fields, and the lines of the text member as "caption"."""
    key, sample, fields = key_of(table.name(row)), table.samples[row], {}
    for part, suffix, parse in (("json", ".json", parse_json), ("text", ".txt", parse_lines)):
        if sample[part]:
            name = key + suffix
            parsed = parse(_bytes(path, name, int(sample[part]), int(sample[f"{part}_size"])), f"{path}:{name}")
            fields |= parsed if isinstance(parsed, dict) else {"caption": parsed}
    return fields


def _bytes(path: Path, name: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{path}:{name}: cannot be read: {error}") from error
    if len(data) != size:
        raise DataError(f"{path}:{name}: {len(data)} of {size} bytes; the tar was cut short")
    if not data:
        raise DataError(f"{path}:{name}: empty")
    return data


def _nothing(paths: list[Path], where: str, modality: str, members: str) -> str:
    seen = sorted({Path(member.name).suffix for path in paths[:100] for member in scan(path)[0]})
    pattern = f" that matches {members!r}" if members else ""
    return (
        f"path: {where} holds no {modality} member{pattern}; needed: {' '.join(SUFFIXES[modality])}, "
        f"found: {' '.join(seen) or 'nothing'}"
    )
