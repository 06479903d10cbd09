"""Samples inside tar files, found by an index of the headers and read by their offsets.

The layout is WebDataset's: members `key.mp4`, `key.json`, `key.txt` are one sample, where the key is the member's
path up to the first dot of its file name. Any tar with media files in it reads the same way, so a robot data set's
`videos/**/episode_000000.mp4` becomes video records by `members` and a constant caption.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.order import Blocks, place_in_blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import CaptionRule, refuse_unusable
from modalities.data.sources.config import SelectableConfig, not_one_of, shuffle_problems
from modalities.data.sources.fields import class_name, lookup
from modalities.data.sources.selection import SUFFIXES, Selection, digest, locate, several, stems
from modalities.data.sources.sidecars import CAPTION_LINES, Beside, parse_sidecars
from modalities.data.sources.tar_index import TarIndex, TarTable, read_table
from modalities.data.sources.tar_scan import key_of, scan


@dataclass(frozen=True, kw_only=True)
class WebdatasetConfig(SelectableConfig):
    """Samples of tars, at `path`: a tar, a folder of them, or wildcards (`shards/*.tar`).

    Attributes:
        label_field: JSON field of the class, or cls for that of a .cls beside the media; "" for none.
        caption_lines: split (each line of a .txt is a caption of its own) or join (all are one).
        members: pattern that the media's path inside the tar must match, such as `videos/*/episode_*.mp4`; "" takes all
            of the modality's suffixes.
        shuffle_blocks: tars that are read at a time; records are shuffled within about that many, which also take turns
            in another order each epoch.
    """

    kind: str = "webdataset"
    caption_lines: str = "split"
    members: str = ""
    shuffle_blocks: int = 16

    def problems(self) -> list[str]:
        found = super().problems() + not_one_of("caption_lines", self.caption_lines, CAPTION_LINES)
        return found + shuffle_problems(self.shuffle_blocks)

    def build(self, modalities: tuple[str, ...], root: Path) -> WebdatasetSource:
        paths, account = locate(self.path, root, ".tar")
        return WebdatasetSource(
            paths,
            modalities[0],
            self.members,
            self.label_field,
            self.caption_rule(),
            self.selection(),
            self.shuffle_blocks,
            self.caption_lines,
            account,
        )

    def layout(self, modality: str) -> str:
        media = " ".join(SUFFIXES.get(modality, ()))
        return f"uncompressed .tar files in which each record is NAME ({media}) and NAME.json"


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
        label: field that holds the class, such as "cls" for that of `key.cls`; "" for none.
        captions, selection: their fields are those of `key.json`; the lines of `key.txt`, or else of `key.caption`,
            are the field "caption".
        shuffle_blocks: tars that the order reads at a time.
        lines: whether the lines of a text are captions of their own, see `parse_sidecars`.
        account: what was left out beside the tars.

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
        lines: str = "split",
        account: Account | None = None,
    ):
        self.paths, self.modality, self.label, self.shuffle_blocks = paths, modality, label, shuffle_blocks
        self._stems, self._lines = stems(paths), lines
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        self.captions.check_label(label, "the field of the JSON members with the class name")
        suffixes = SUFFIXES[modality]
        make = partial(_table, modality=modality, suffixes=suffixes, pattern=members, label=label, selection=selection)
        self._index = TarIndex(make, *suffixes, members, label, repr(selection))
        summaries = self._index.summaries(paths)
        if len(paths) == 1 and summaries[0].damage:
            raise DataError(summaries[0].damage)
        where = several(paths)
        found = sum(summary.found for summary in summaries)
        if not found and all(summary.damage for summary in summaries):
            raise DataError(summaries[0].damage)
        if not found:
            raise ConfigError(_nothing(paths, where, modality, members))
        self._ends = np.cumsum([summary.samples for summary in summaries], dtype=np.int64)
        if not self._ends[-1]:
            raise ConfigError(f"path: {where}: none of {found} samples is left by {selection.describe()}")
        self._account = account or Account()
        for path, summary in zip(paths, summaries, strict=True):
            self._account.add(summary.account)
            if summary.damage:
                self._account.leave("damaged file|", path.name)
        if not self.captions.reads_fields:
            self._account.uncaptioned = 0
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
        tar, row = place_in_blocks(self._ends, index)
        table, path = self._table(tar), self.paths[tar]
        if row == len(table.samples):
            raise DataError(table.damage)
        name, sample = table.name(row), table.samples[row]
        origin = f"{path}:{name}"
        beside = _beside(path, table, row, self._lines) if self.label or self.captions.reads_fields else Beside()
        label = class_name(lookup(beside.fields, self.label)) if self.label else None
        if self.label and label is None and beside.problem:
            raise beside.problem
        texts = self.captions.texts(beside.fields, label, origin, beside.problem)
        # Names repeat from tar to tar, so the tar's name is part of the key.
        key = f"{self._stems[tar]}/{key_of(name)}"
        media = _bytes(path, name, int(sample["media"]), int(sample["media_size"]))
        if not media:
            raise DataError(f"{origin}: empty")
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

    def account(self) -> Account:
        return self._account

    def fingerprint(self) -> str:
        files = (f"{path.name}:{part.hex()}" for path, part in zip(self.paths, self._digests, strict=True))
        return digest("webdataset", "2", *files)


def _table(
    path: Path, modality: str, suffixes: tuple[str, ...], pattern: str, label: str, selection: Selection
) -> TarTable:
    """The samples of one tar that a selection takes, with their classes."""
    table = read_table(path, modality, suffixes, pattern)
    if not selection.fields and not label and selection.split == "all":
        return table
    taken, labels = [], set()
    for row in range(len(table.samples)):
        beside = _beside(path, table, row) if selection.fields or label else Beside()
        # Where something cannot be read the sample stays, and reading it reports that.
        if beside.problem or selection.takes(beside.fields, key_of(table.name(row))):
            taken.append(row)
            if label and (name := class_name(lookup(beside.fields, label))) is not None:
                labels.add(name)
    names = [table.name(row).encode("utf-8", "surrogateescape") for row in taken]
    samples = table.samples[taken]
    samples["name"] = np.cumsum([len(name) for name in names])
    extra = table.extra[np.isin(table.extra["row"], taken)]
    extra["row"] = np.searchsorted(taken, extra["row"])
    table.account.leave(f"record| (outside {selection.describe()})", count=len(table.samples) - len(taken))
    return replace(table, samples=samples, names=b"".join(names), extra=extra, labels=tuple(sorted(labels)))


def _beside(path: Path, table: TarTable, row: int, lines: str = "split") -> Beside:
    """What lies beside the media of one sample."""
    key, found, problem = key_of(table.name(row)), [], None
    for suffix, (offset, size) in table.sidecars(row).items():
        name = key + suffix
        try:
            found.append((suffix, _bytes(path, name, offset, size), f"{path}:{name}"))
        except DataError as error:
            problem = problem or error
    beside = parse_sidecars(found, lines)
    return Beside(beside.fields, problem or beside.problem)


def _bytes(path: Path, name: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{path}:{name}: cannot be read: {error}") from error
    if len(data) != size:
        raise DataError(f"{path}:{name}: {len(data)} of {size} bytes; the tar was cut short")
    return data


def _nothing(paths: list[Path], where: str, modality: str, members: str) -> str:
    seen: set[str] = set()
    for path in paths[:100]:
        with suppress(DataError):  # one of several that is damaged
            seen |= {Path(member.name).suffix for member in scan(path)[0]}
    pattern = f" that matches {members!r}" if members else ""
    return (
        f"path: {where} holds no {modality} member{pattern}; needed: {' '.join(SUFFIXES[modality])}, "
        f"found: {' '.join(sorted(seen)) or 'nothing'}"
    )
