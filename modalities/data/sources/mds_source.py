"""Encoded media, captions and classes in the columns of MDS shards, as a source of records."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from core.progress import ProgressBar
from core.user_cache import user_cache
from modalities.base import Record
from modalities.data.order import Blocks, place_in_blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import CaptionRule, refuse_unusable
from modalities.data.sources.config import MediaConfig, cache_problems, place_of, shuffle_problems
from modalities.data.sources.mds import MdsShards
from modalities.data.sources.rows import read_columns, row_record
from modalities.data.sources.selection import Selection, digest, held_out_rows

_ENCODED = ("bytes", "jpeg", "png")


@dataclass(frozen=True, kw_only=True)
class MdsConfig(MediaConfig):
    """Samples of MDS shards, at `path`: one folder, or the URL of one, such as s3://bucket/folder.

    There is no selection by fields, which are known only after reading all records.

    Attributes:
        media_field: column of the encoded media; "" is the name of the modality.
        shuffle_blocks: shards that are read at a time; records are shuffled within about that many, which also take
            turns in another order each epoch.
        cache: folder for copies of remote shards; "" is one of the user's cache directory.
        cache_limit: what the cache may take, such as 100gb; "" is no limit.
    """

    kind: str = "mds"
    media_field: str = ""
    shuffle_blocks: int = 16
    cache: str = ""
    cache_limit: str = ""

    def problems(self) -> list[str]:
        return super().problems() + cache_problems(self.cache_limit) + shuffle_problems(self.shuffle_blocks)

    def build(self, modalities: tuple[str, ...], root: Path) -> MdsSource:
        return MdsSource(
            place_of(self.path, root),
            self.media_field or modalities[0],
            self.label_field,
            self.caption_rule(),
            self.selection(),
            root / Path(self.cache).expanduser() if self.cache else None,
            self.cache_limit or None,
            self.shuffle_blocks,
        )

    def layout(self, modality: str) -> str:
        return f"MDS shards and their index.json, with the encoded media in the column {self.media_field or modality!r}"


class MdsSource:
    """Random access to the samples of MDS shards, in place or through a local cache.

    Args:
        path, cache, cache_limit: see MdsShards.
        media: column of encoded media, of the encoding bytes, jpeg or png; its bytes are taken as they are stored.
        label: column of the class; "" for none.
        captions: its fields are columns; a column holds a text, or a list of texts as JSON; dotted names lead into
            JSON, see `lookup`.
        selection: split and holdout by the sample's own key alone: fields are known only after reading all samples.
        shuffle_blocks: shards that the order reads at a time.

    Raises ConfigError for a missing folder or column, a limit that is too small, a selection that leaves nothing, and
    where nothing can be read; DataError for a damaged index and an unreadable remote.
    """

    def __init__(
        self,
        path: str | Path,
        media: str,
        label: str = "",
        captions: CaptionRule | None = None,
        selection: Selection | None = None,
        cache: str | Path | None = None,
        cache_limit: str | None = None,
        shuffle_blocks: int = 16,
    ):
        self.media, self.label, self.shuffle_blocks = media, label, shuffle_blocks
        self.captions, self.selection = captions or CaptionRule(), selection or Selection()
        if self.selection.fields:
            raise ConfigError(
                f"where, holdout_key: {', '.join(self.selection.fields)}; records of MDS shards are selected only by "
                "split and holdout of their own keys, since their fields are known only after reading all of them"
            )
        self.captions.check_label(label, "the column of the class names")
        self.shards = MdsShards(path, cache, cache_limit, encoded=(media,))
        self._check_columns()
        self.shards.in_order(shuffle_blocks)
        self._sizes = self.shards.blocks()
        self._starts = np.cumsum(self._sizes) - self._sizes
        taken = self._sizes
        if self.selection.split != "all":
            taken = [len(self._rows(shard)) for shard in range(len(self._sizes))]
        self._ends = np.cumsum(taken, dtype=np.int64)
        if not self._ends[-1]:
            raise ConfigError(
                f"path: {path}: none of {len(self.shards)} samples is left by {self.selection.describe()}"
            )
        refuse_unusable(self, f"samples of {path}")

    def _check_columns(self) -> None:
        columns, path = self.shards.columns, self.shards.path
        read_columns(list(columns), self.media, self.label, self.captions, path)
        if columns[self.media] not in _ENCODED:
            raise ConfigError(
                f"media_field: column {self.media!r} of {path} is stored as {columns[self.media]}; encoded media are "
                f"needed, as {', '.join(_ENCODED)}"
            )

    def _rows(self, shard: int) -> np.ndarray:
        """The samples of a shard that the split takes."""
        first, count = int(self._starts[shard]), int(self._sizes[shard])
        name = self.shards.name(first) if count else ""
        held_out = held_out_rows(name, count, self.selection.holdout)
        return np.flatnonzero(held_out == (self.selection.split == "test"))

    def _place(self, index: int) -> int:
        """The number among all samples of the one that is `index` among those taken."""
        if self.selection.split == "all":
            return index
        shard, place = place_in_blocks(self._ends, index)
        return int(self._starts[shard] + self._rows(shard)[place])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def blocks(self) -> Blocks:
        return Blocks(np.diff(self._ends, prepend=0), self.shuffle_blocks)

    def read(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise DataError(f"{self.shards.path}: record {index} of {len(self)}")
        place = self._place(index)
        row, key = self.shards.read(place), self.shards.name(place)
        return row_record(row, self.media, self.label, self.captions, key, f"{self.shards.path}/{key}")

    def labels(self) -> list[str]:
        """Found by reading every sample once, and then kept in the user's cache directory if all could be read."""
        if not self.label:
            return []
        path = user_cache("labels") / f"{digest(self.fingerprint(), self.label, '2')}.json"
        if path.is_file():
            return json.loads(path.read_text())
        names, whole = set(), True
        for index in ProgressBar(range(len(self)), desc=f"classes of {self.shards.path}", disable=len(self) < 10_000):
            try:
                names.add(self.read(index).label)
            except DataError:
                whole = False  # met again, and noted, when training reads it
        found = sorted(name for name in names if name is not None)
        if not whole:  # a store that failed for a while must not hide classes forever
            return found
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(found))
            part.replace(path)
        except OSError:
            pass  # a home that cannot be written only means that they are looked for again
        return found

    def account(self) -> Account:
        account = Account()
        account.leave(f"record| (outside {self.selection.describe()})", count=len(self.shards) - len(self))
        return account

    def fingerprint(self) -> str:
        chosen = (self.selection.split, f"{self.selection.holdout:g}")
        return digest("mds", self.shards.fingerprint(), self.media, *chosen)
