"""Samples inside tar files, found by one scan of the headers and read by their offsets.

The layout is WebDataset's: members `key.mp4`, `key.json`, `key.txt` are one sample, where the key is the member's
path up to the first dot of its file name. Any tar with media files in it reads the same way, so a robot data set's
`videos/**/episode_000000.mp4` becomes video records by `members` and a constant caption.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.captions import CaptionRule, parse_json, parse_lines, refuse_unusable
from modalities.data.selection import SUFFIXES, Selection, digest, stems


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """One sample: the number of its tar, its key, its media, and the members beside it by suffix."""

    tar: int
    key: str
    media: Member
    beside: dict[str, Member]


class WebdatasetSource:
    """Random access to the samples of one or more uncompressed tars.

    No file is held open, so a source may be pickled or carried over a fork.

    Args:
        paths: tars, in order.
        modality: decides the suffixes of the media (selection.SUFFIXES).
        members: only media whose path inside the tar matches this pattern (`*` also matches `/`); "" takes all.
        label: field of the JSON member that holds the class; "" for none.
        captions, selection: their fields are those of `key.json`; the lines of `key.txt` are the field "caption".

    Raises ConfigError for a tar without fitting media, a selection that leaves nothing, or no captions where they are
    needed; DataError for a damaged, truncated or compressed tar.
    """

    def __init__(
        self,
        paths: list[Path],
        modality: str,
        members: str = "",
        label: str = "",
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
    ):
        self.paths, self.modality, self.label = paths, modality, label
        self._stems = stems(paths)
        self.captions, selection = captions or CaptionRule(), selection or Selection()
        if self.captions.mode == "label" and not label and not self.captions.constant:
            raise ConfigError("captions: 'label' needs label_field, the field of the JSON members with the class name")
        found = [
            sample
            for number, path in enumerate(paths)
            for sample in _samples(scan(path), number, str(path), SUFFIXES[modality], members)
        ]
        where = str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        if not found:
            seen = sorted({Path(member.name).suffix for path in paths for member in scan(path)})
            pattern = f" that matches {members!r}" if members else ""
            raise ConfigError(
                f"path: {where} holds no {modality} member{pattern}; needed: {' '.join(SUFFIXES[modality])}, "
                f"found: {' '.join(seen) or 'nothing'}"
            )
        self.samples: list[Sample] = []
        self._names: set[str] = set()
        for sample in found:
            fields = self._fields_for_selection(sample, selection)
            if fields is None:
                self.samples.append(sample)  # reading it reports the damaged member
            elif selection.takes(fields, sample.key):
                self.samples.append(sample)
                if label and fields.get(label) is not None:
                    self._names.add(str(fields[label]))
        if not self.samples:
            raise ConfigError(f"path: {where}: none of {len(found)} samples is left by {selection.describe()}")
        refuse_unusable(self, f"samples of {where}")

    def _fields_for_selection(self, sample: Sample, selection: Selection) -> dict[str, object] | None:
        if not selection.fields and not self.label:
            return {}
        try:
            return self._fields(sample)
        except DataError:
            return None

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Record:
        sample = self.samples[index]
        origin = f"{self.paths[sample.tar]}:{sample.media.name}"
        fields = self._fields(sample) if self.label or self.captions.reads_fields else {}
        label = None
        if self.label and fields.get(self.label) is not None:
            label = str(fields[self.label])
        texts = self.captions.texts(fields, label, origin)
        # Names repeat from tar to tar, so the tar's name is part of the key.
        key = f"{self._stems[sample.tar]}/{sample.key}"
        return Record(
            key, origin, self._bytes(sample, sample.media), Path(sample.media.name).suffix.lower(), texts, label
        )

    def _fields(self, sample: Sample) -> dict[str, object]:
        fields: dict[str, object] = {}
        for suffix, parse in ((".json", parse_json), (".txt", parse_lines)):
            if suffix in sample.beside:
                member = sample.beside[suffix]
                parsed = parse(self._bytes(sample, member), f"{self.paths[sample.tar]}:{member.name}")
                fields |= parsed if isinstance(parsed, dict) else {"caption": parsed}
        return fields

    def _bytes(self, sample: Sample, member: Member) -> bytes:
        path = self.paths[sample.tar]
        try:
            with open(path, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise DataError(f"{path}:{member.name}: cannot be read: {error}") from error
        if len(data) != member.size:
            raise DataError(f"{path}:{member.name}: {len(data)} of {member.size} bytes; the tar was cut short")
        if not data:
            raise DataError(f"{path}:{member.name}: empty")
        return data

    def labels(self) -> list[str]:
        return sorted(self._names)

    def fingerprint(self) -> str:
        files = (f"{path.name}:{path.stat().st_size}" for path in self.paths)
        return digest("webdataset", *files, *(f"{sample.tar}:{sample.media.name}" for sample in self.samples))


def scan(path: Path) -> list[Member]:
    """The regular files of a tar, in order. Raises DataError for a damaged, truncated or compressed one."""
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression, which allows no random access
            members = [
                Member(info.name.removeprefix("./"), info.offset_data, info.size) for info in tar if info.isfile()
            ]
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not an uncompressed tar, or damaged: {error}") from error
    # tarfile takes a damaged or cut header after the first one for the end; a true end is a block of zeros.
    if mark != bytes(tarfile.BLOCKSIZE):
        raise DataError(
            f"{path}: damaged or cut short at byte {end}, after {members[-1].name if members else 'no file'}: "
            "neither a header nor an end mark is there"
        )
    return members


def _samples(members: list[Member], number: int, origin: str, suffixes: tuple[str, ...], pattern: str) -> list[Sample]:
    """Members grouped by key, in the order of their media."""
    media: dict[str, Member] = {}
    beside: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, _, name = member.name.rpartition("/")
        if name.startswith("."):
            continue
        key = f"{folder}/" * bool(folder) + name.partition(".")[0]
        suffix = Path(name).suffix.lower()
        if suffix in suffixes and (not pattern or fnmatchcase(member.name, pattern)):
            if key in media:
                raise DataError(
                    f"{origin}: sample {key!r} has two media members, {media[key].name} and {member.name}; "
                    "choose one kind with `members`"
                )
            media[key] = member
        else:
            beside.setdefault(key, {})[suffix] = member
    return [Sample(number, key, member, beside.get(key, {})) for key, member in media.items()]
