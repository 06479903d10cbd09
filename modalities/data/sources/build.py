"""The configuration of a data source, and the source it builds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from core.errors import ConfigError, nearest
from modalities.base import Record, Source
from modalities.data.order import Blocks, blocks_of
from modalities.data.sources.account import Account
from modalities.data.sources.cache import parse_size
from modalities.data.sources.captions import CAPTION_CHOICES, CAPTIONS, CaptionRule
from modalities.data.sources.folder import FolderSource
from modalities.data.sources.mds_source import MdsSource
from modalities.data.sources.parquet import ParquetSource
from modalities.data.sources.selection import SPLITS, SUFFIXES, Selection, digest, locate
from modalities.data.sources.sidecars import CAPTION_LINES
from modalities.data.sources.webdataset import WebdatasetSource
from modalities.latents.format import Manifest, stored_manifests
from modalities.latents.source import LatentsSource
from modalities.synthetic.audiovisual import AudiovisualSource
from modalities.synthetic.draw import SyntheticSource


@dataclass
class SourceConfig:
    """Where the records of one modality come from.

    Attributes:
        kind: synthetic (drawn in code), folder (media files), parquet, webdataset (tars), latents (what `selfflow
            encode` stored), mds (shards of mosaicml-streaming), or concat (of `parts`).
        path: of the folder, of the Parquet files, or of the tars; a folder of such files; wildcards are allowed
            (`shards/*.tar`). Relative to the configuration file. latents, mds: one folder, or the URL of one,
            such as s3://bucket/folder.
        cache: latents, mds: folder for copies of remote shards; "" is one of the user's cache directory.
        cache_limit: latents, mds: what the cache may take, such as 100gb; "" is no limit.
        shuffle_blocks: parquet, webdataset, mds, latents: row groups, tars or shards that are read at a time; records
            are shuffled within about that many, which also take turns in another order each epoch.
        media_field: parquet, mds: column of the encoded media; "" is the name of the modality.
        members: webdataset: pattern that the media's path inside the tar must match, such as
            `videos/*/episode_*.mp4`; "" takes all of the modality's suffixes.
        captions: given (fields beside the media, see `caption_fields`), label (the class name is the caption; in a
            folder, the name of the folder), or none.
        caption_fields: columns, or fields of the JSON beside the media, that hold one text or a list of texts. The
            lines of a .txt or .caption beside the media count as the field "caption". Dots lead inwards: `caption.en`,
            `messages.0.content`; without the number, every item of a list is taken.
        caption_lines: folder, webdataset: split (each line of a .txt is a caption of its own) or join (all are one).
        caption: one caption for all records, in place of the above.
        caption_default: caption of records that have none; "" sets such records aside as unusable.
        caption_choice: which of several captions is used: longest, middle (of median length) or first. null is the
            paper's: a random one in every epoch of training, the most detailed in evaluation, taken to be the longest.
            Where a field holds it, name that one in `caption_fields` instead. Of a concat, not of its parts.
        label_field: column or JSON field of the class, or cls for that of a .cls beside the media; "" in a folder
            takes the names of its folders.
        where: field -> value that a record must have, such as {style: noto}; compared as text. Not with mds, whose
            fields are known only after reading all records.
        split: train or test, a side of the hold-out; or all.
        holdout: share held out for test, by a hash of the record's key or of `holdout_key`.
        holdout_key: field whose equal values stay on one side; "" is the record's key.
        repeat: how often an epoch holds each record, so that a small part of a concat is seen more often.
        size, count, seed, frames, rate, seconds, octave: of synthetic data, see SyntheticSource.
        parts: concat: name -> source; the name is put before the keys.
    """

    kind: str = "synthetic"
    path: str = ""
    cache: str = ""
    cache_limit: str = ""
    shuffle_blocks: int = 16
    media_field: str = ""
    members: str = ""
    captions: str = "given"
    caption_fields: list[str] = field(default_factory=lambda: ["caption", "captions"])
    caption_lines: str = "split"
    caption: str = ""
    caption_default: str = ""
    caption_choice: str | None = None
    label_field: str = ""
    where: dict[str, str] = field(default_factory=dict)
    split: str = "all"
    holdout: float = 0.0
    holdout_key: str = ""
    repeat: int = 1
    size: int = 16
    count: int = 100_000
    seed: int = 0
    frames: int = 9
    rate: float | None = None
    seconds: float = 1.0
    octave: int = 5
    parts: dict[str, SourceConfig] = field(default_factory=dict)

    def problems(self) -> list[str]:
        if self.kind not in _READS:
            return [f"kind: {self.kind!r} is not one of {', '.join(_READS)}.{nearest(self.kind, _READS)}"]
        default = SourceConfig()
        # A setting that this kind does not read is refused: its author expects something of it.
        found = [
            f"{entry.name}: {getattr(self, entry.name)!r} is not read by kind {self.kind!r}; it reads "
            f"{', '.join(sorted(_READS[self.kind]))}"
            for entry in fields(self)
            if entry.name not in settings_read_by(self.kind)
            and getattr(self, entry.name) != getattr(default, entry.name)
        ]
        if "path" in _READS[self.kind] and not self.path:
            found.append(f"path: empty, kind {self.kind!r} needs one")
        if self.cache_limit:
            found += _size_problems(self.cache_limit)
        if self.captions not in CAPTIONS:
            found.append(
                f"captions: {self.captions!r} is not one of {', '.join(CAPTIONS)}.{nearest(self.captions, CAPTIONS)}"
            )
        if self.caption_lines not in CAPTION_LINES:
            hint = nearest(self.caption_lines, CAPTION_LINES)
            found.append(f"caption_lines: {self.caption_lines!r} is not one of {', '.join(CAPTION_LINES)}.{hint}")
        if self.captions == "given" and not self.caption and not self.caption_fields:
            found.append("caption_fields: empty; name a field, or set `captions: none` or a constant `caption`")
        if self.captions == "label" and self.kind in ("parquet", "webdataset", "mds") and not self.label_field:
            found.append("label_field: empty, `captions: label` needs it")
        if self.caption_choice not in (None, *CAPTION_CHOICES):
            hint = nearest(self.caption_choice, CAPTION_CHOICES)
            found.append(f"caption_choice: {self.caption_choice!r} is not one of {', '.join(CAPTION_CHOICES)}.{hint}")
        found += [
            f"parts.{name}.caption_choice: is not read there; set the one of the concat"
            for name, part in self.parts.items()
            if part.caption_choice is not None
        ]
        if self.split not in SPLITS:
            found.append(f"split: {self.split!r} is not one of {', '.join(SPLITS)}.{nearest(self.split, SPLITS)}")
        if not 0 <= self.holdout < 1:
            found.append(f"holdout: {self.holdout} must lie in [0, 1)")
        elif (self.split == "all") != (self.holdout == 0):
            found.append(f"split: {self.split!r} with holdout {self.holdout:g}; set both, or neither")
        if self.holdout_key and self.split == "all":
            found.append(f"holdout_key: {self.holdout_key!r} without a split; set split and holdout too")
        if self.shuffle_blocks < 1:
            found.append(f"shuffle_blocks: {self.shuffle_blocks} must be at least 1")
        if self.repeat < 1:
            found.append(f"repeat: {self.repeat} must be at least 1")
        if self.kind == "concat" and not self.parts:
            found.append("parts: empty, kind 'concat' needs at least one")
        if len({part.holds_latents for part in self.parts.values()}) > 1:
            stored = ", ".join(name for name, part in self.parts.items() if part.holds_latents)
            found.append(f"parts: {stored} hold latents and the others media; one source has one of the two")
        return found + [f"parts.{name}.{line}" for name, part in self.parts.items() for line in part.problems()]

    @property
    def holds_latents(self) -> bool:
        """Its records have stored latents in place of media."""
        return self.kind == "latents" or any(part.holds_latents for part in self.parts.values())


def _size_problems(limit: str) -> list[str]:
    try:
        parse_size(limit)
    except ConfigError as error:
        return [f"cache_limit: {line}" for line in error.problems]
    return []


_CAPTIONS = {"captions", "caption_fields", "caption", "caption_default"}
_SELECTION = {"where", "split", "holdout", "holdout_key"}
_READS: dict[str, set[str]] = {
    "synthetic": {"size", "count", "seed", "frames", "rate", "seconds", "octave"},
    "folder": {"path", "label_field", "caption_lines", *_CAPTIONS, *_SELECTION},
    "parquet": {"path", "media_field", "label_field", "shuffle_blocks", *_CAPTIONS, *_SELECTION},
    "webdataset": {"path", "members", "label_field", "shuffle_blocks", "caption_lines", *_CAPTIONS, *_SELECTION},
    "mds": {
        *("path", "media_field", "label_field", "shuffle_blocks", "cache", "cache_limit", "split", "holdout"),
        *_CAPTIONS,
    },
    "latents": {"path", "cache", "cache_limit", "shuffle_blocks"},
    "concat": {"parts"},
}


def settings_read_by(kind: str) -> set[str]:
    """Of a kind of source; empty for an unknown one."""
    return _READS[kind] | {"kind", "repeat", "caption_choice"} if kind in _READS else set()


def build_source(config: SourceConfig, modalities: str | tuple[str, ...], root: Path) -> Source:
    """The source of a configuration.

    Args:
        modalities: of the parts of a record, or that of its only part. Files, columns and members are those of the
            first; the other parts are read from the same media, such as the audio of a video.
        root: the folder that relative paths start from.

    Raises ConfigError for wrong settings, missing paths, columns, members or captions, and DataError for damaged
    files, before any record is trained on.
    """
    problems = config.problems()
    if problems:
        raise ConfigError(problems)
    modalities = (modalities,) if isinstance(modalities, str) else modalities
    source = _BUILD[config.kind](config, modalities, root)
    return source if config.repeat == 1 else ConcatSource({"": source}, {"": config.repeat})


class ConcatSource:
    """Several sources one after another, each repeated a number of times.

    Keys become `name/key`, and `name/key#2` for the second repetition, so that each repetition of a record has its own
    noise.

    Args:
        parts: name -> source; a single part may have the name "", which is then not put before its keys.
        repeat: name -> how often; 1 where it is left out.
    """

    def __init__(self, parts: dict[str, Source], repeat: dict[str, int] | None = None):
        repeat = repeat or {}
        self.runs = [(name, part, turn) for name, part in parts.items() for turn in range(repeat.get(name, 1))]
        self._ends = list(accumulate(len(part) for _, part, _ in self.runs))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Record:
        run = bisect_right(self._ends, index)
        name, part, turn = self.runs[run]
        record = part.read(index - (self._ends[run] - len(part)))
        key = f"{name}/{record.key}" if name else record.key
        return replace(record, key=f"{key}#{turn + 1}" if turn else key)

    def labels(self) -> list[str]:
        return sorted({label for _, part, turn in self.runs if turn == 0 for label in part.labels()})

    def blocks(self) -> Blocks | None:
        """Those of the parts; a part without any is cut into blocks as large as the others' and scattered."""
        found = [blocks_of(part) for _, part, _ in self.runs]
        known = [one for one in found if one is not None]
        if not known:
            return None
        typical = max(1, int(np.median(np.concatenate([one.sizes for one in known]))))
        sizes, scattered, start = [], [], 0
        for (_, part, _), one in zip(self.runs, found, strict=True):
            if one is None:
                scattered.append((start, start + len(part)))
                pieces = -(-len(part) // typical)
                sizes.append(np.diff(np.arange(pieces + 1) * len(part) // max(1, pieces)))
            else:
                scattered += [(start + low, start + high) for low, high in one.scattered]
                sizes.append(one.sizes)
            start += len(part)
        return Blocks(np.concatenate(sizes), max(one.window for one in known), tuple(scattered))

    def stored(self) -> list[Manifest]:
        """Of the folders of latents among the parts."""
        return [manifest for _, part, turn in self.runs if turn == 0 for manifest in stored_manifests(part)]

    def account(self) -> Account:
        """Of all parts; one that is repeated counts once."""
        total = Account()
        for _, part, turn in self.runs:
            if turn == 0:
                total.add(part.account())
        return total

    def fingerprint(self) -> str:
        return digest("concat", *(f"{name}#{turn}:{part.fingerprint()}" for name, part, turn in self.runs))


def _rule(config: SourceConfig) -> CaptionRule:
    return CaptionRule(config.captions, tuple(config.caption_fields), config.caption, config.caption_default)


def _selection(config: SourceConfig) -> Selection:
    return Selection(dict(config.where), config.split, config.holdout, config.holdout_key)


def _synthetic(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    if set(modalities) == {"video", "audio"}:
        rate = {} if config.rate is None else {"fps": config.rate}
        return AudiovisualSource(config.size, config.seed, config.count, config.frames, **rate)
    if len(modalities) != 1:
        raise ConfigError(
            f"kind: 'synthetic' draws one of {', '.join(SUFFIXES)}, or a video with its audio; "
            f"not {' with '.join(modalities)}"
        )
    return SyntheticSource(
        modalities[0], config.size, config.seed, config.count, config.frames, config.rate, config.seconds, config.octave
    )


def _folder(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    return FolderSource(
        root / Path(config.path).expanduser(),
        modalities[0],
        _rule(config),
        _selection(config),
        config.label_field,
        config.caption_lines,
    )


def _parquet(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    paths, account = locate(config.path, root, ".parquet")
    return ParquetSource(
        paths,
        config.media_field or modalities[0],
        config.label_field,
        _rule(config),
        _selection(config),
        config.shuffle_blocks,
        account,
    )


def _webdataset(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    paths, account = locate(config.path, root, ".tar")
    return WebdatasetSource(
        paths,
        modalities[0],
        config.members,
        config.label_field,
        _rule(config),
        _selection(config),
        config.shuffle_blocks,
        config.caption_lines,
        account,
    )


def _latents(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    path = config.path if "://" in config.path else root / Path(config.path).expanduser()
    cache = str(root / Path(config.cache).expanduser()) if config.cache else None
    return LatentsSource(path, modalities, cache, config.cache_limit or None, config.shuffle_blocks)


def _mds(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    return MdsSource(
        config.path if "://" in config.path else root / Path(config.path).expanduser(),
        config.media_field or modalities[0],
        config.label_field,
        _rule(config),
        _selection(config),
        root / Path(config.cache).expanduser() if config.cache else None,
        config.cache_limit or None,
        config.shuffle_blocks,
    )


def _concat(config: SourceConfig, modalities: tuple[str, ...], root: Path) -> Source:
    # Repetition is left to this concat, so that keys get one suffix and not a nested source for each part.
    parts = {name: build_source(replace(part, repeat=1), modalities, root) for name, part in config.parts.items()}
    return ConcatSource(parts, {name: part.repeat for name, part in config.parts.items()})


_BUILD: dict[str, Callable[[SourceConfig, tuple[str, ...], Path], Source]] = {
    "synthetic": _synthetic,
    "folder": _folder,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "latents": _latents,
    "mds": _mds,
    "concat": _concat,
}
