"""Latents that `selfflow encode` has stored, as a source of records: no media, no autoencoder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.order import Blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import refuse_unusable
from modalities.data.sources.config import PathConfig, cache_problems, place_of, shuffle_problems
from modalities.data.sources.mds import MdsShards
from modalities.data.sources.selection import digest
from modalities.latents.format import MANIFEST, Manifest, read_manifest, unpack


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(PathConfig):
    """What `selfflow encode` stored, at `path`: one folder, or the URL of one, such as s3://bucket/folder.

    Attributes:
        shuffle_blocks: shards that are read at a time; records are shuffled within about that many, which also take
            turns in another order each epoch.
        cache: folder for copies of remote shards; "" is one of the user's cache directory.
        cache_limit: what the cache may take, such as 100gb; "" is no limit.
    """

    kind: str = "latents"
    shuffle_blocks: int = 16
    cache: str = ""
    cache_limit: str = ""

    def problems(self) -> list[str]:
        return super().problems() + cache_problems(self.cache_limit) + shuffle_problems(self.shuffle_blocks)

    def build(self, modalities: tuple[str, ...], root: Path) -> LatentsSource:
        cache = root / Path(self.cache).expanduser() if self.cache else None
        return LatentsSource(
            place_of(self.path, root), modalities, cache, self.cache_limit or None, self.shuffle_blocks
        )

    @property
    def holds_latents(self) -> bool:
        return True


class LatentsSource:
    """The samples of one encoded folder, or of a remote copy of it.

    Args:
        path: holds manifest.json; a folder, or a URL as MdsShards takes it.
        modalities: that its samples must have parts of.
        cache, cache_limit: of MdsShards.
        shuffle_blocks: shards that the order reads at a time.

    Attributes:
        manifest: what is stored, without the list of shards, which can be long.

    Raises ConfigError for a folder that is missing, not finished, without one of the modalities, or of which nothing
    can be read; DataError where index.json is not that of the manifest.
    """

    def __init__(
        self,
        path: str | Path,
        modalities: Collection[str] = (),
        cache: str | Path | None = None,
        cache_limit: str | None = None,
        shuffle_blocks: int = 16,
    ):
        self.path, self.shuffle_blocks = str(path), shuffle_blocks
        local = "://" not in self.path
        if local:
            self.manifest = read_manifest(Path(path))
        # Not hashed as a whole: every row has a checksum, and then a damaged byte costs one sample instead of a shard.
        self.shards = MdsShards(path, cache, cache_limit, hashes=False)
        self.shards.in_order(shuffle_blocks)
        if not local:
            where = f"{self.path}/{MANIFEST}"
            self.manifest = Manifest.from_json(self.shards.read_file(MANIFEST).decode("utf-8", "replace"), where)
        there = [part.modality for part in self.manifest.parts.values()]
        if missing := sorted(set(modalities) - set(there)):
            raise ConfigError(
                f"path: {self.path} holds latents of {' and '.join(there)}, and none of {', '.join(missing)}"
            )
        self._compare()
        self._digest = digest("latents", *(shard["sha256"] for shard in self.manifest.shards))
        self.manifest = replace(self.manifest, shards=[])
        refuse_unusable(self, f"samples of {self.path}")

    def _compare(self) -> None:
        """Manifest and index must be of the same shards."""
        manifest = self.manifest
        counts = [shard["samples"] for shard in manifest.shards]
        if len(self.shards) != manifest.samples or self.shards.blocks().tolist() != counts:
            raise DataError(
                f"{self.path}: index.json has {len(self.shards)} samples in {len(self.shards.blocks())} shards, and "
                f"{MANIFEST} says {manifest.samples} in {len(counts)}"
            )
        wanted = manifest.columns()
        if differ := [name for name in sorted({*wanted, *self.shards.columns}) if not self._same(name, wanted)]:
            seen, said = self.shards.columns.get(differ[0], "missing"), wanted.get(differ[0], "none")
            raise DataError(f"{self.path}: column {differ[0]!r} is {seen}, and {MANIFEST} says {said}")

    def _same(self, name: str, wanted: dict[str, str]) -> bool:
        return self.shards.columns.get(name) == wanted.get(name)

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, index: int) -> Record:
        row = self.shards.read(index)
        return unpack(row, self.manifest, f"{self.path}/{self.shards.name(index)}")

    def blocks(self) -> Blocks:
        return self.shards.in_order(self.shuffle_blocks)

    def labels(self) -> list[str]:
        return list(self.manifest.labels)

    def account(self) -> Account:
        account = Account()
        account.leave("record| (set aside in encoding)", count=self.manifest.bad)
        return account

    def fingerprint(self) -> str:
        return self._digest

    def stored(self) -> list[Manifest]:
        """What is stored, of every folder that this source reads."""
        return [self.manifest]
