"""Latents that `selfflow encode` has stored, as a source of records: no media, no autoencoder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from core.errors import ConfigError, DataError
from modalities.base import Record
from modalities.data.order import Blocks
from modalities.data.sources.account import Account
from modalities.data.sources.captions import refuse_unusable
from modalities.data.sources.mds import MdsShards
from modalities.data.sources.selection import digest
from modalities.latents.format import MANIFEST, Manifest, read_manifest, unpack


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
        cache: str | None = None,
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
