"""RLDS data sets as TensorFlow Datasets writes them, such as RT-1's, without TensorFlow and in constant memory.

An index is built once: the place of every episode and its number of steps, 24 bytes each. It takes one pass over the
files, which checks every checksum, and is kept in a cache. An episode is then one read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import ConfigError, DataError
from core.progress import ProgressBar
from core.user_cache import user_cache
from modalities.data.sources.account import Account
from modalities.data.sources.cache import FileCache
from modalities.data.sources.selection import digest
from modalities.episodes.base import Episode, Fields, stacked, wrong_field
from modalities.episodes.example import Example
from modalities.episodes.features import STEPS, RldsInfo, read_info
from modalities.episodes.tfrecord import read_record, scan
from modalities.media.images import read_image

VERSION = "1"  # of the index
SHOWN_FROM = 1 << 30  # bytes from which on building the index shows its progress


@dataclass(frozen=True)
class Index:
    """
    Attributes:
        shard, offset, number, steps: of each episode: place among the shards, byte in it, place among its records, T.
        damaged: one line for each record that cannot be read.
    """

    shard: np.ndarray
    offset: np.ndarray
    number: np.ndarray
    steps: np.ndarray
    damaged: tuple[str, ...]


class RldsSet:
    """
    Args:
        folder: of one version of a data set, with dataset_info.json and features.json.
        fields: what is read; the names of steps are without `steps/`.
        fps: steps a second, which the files do not say.
        subset: split of the data set, such as train.
        cache: folder of the index; None is one of the user's cache directory.

    Raises ConfigError for a folder, split or field that is not there, DataError where shards are missing.
    """

    def __init__(self, folder: Path, fields: Fields, fps: float, subset: str = "train", cache: Path | None = None):
        self.folder, self.fields, self.fps, self.subset = folder, fields, fps, subset
        self.info = read_info(folder)
        _check_fields(self.info, fields, folder)
        if subset not in self.info.splits:
            raise wrong_field("subset", subset, list(self.info.splits), str(folder))
        self.shards = list(self.info.splits[subset])
        sizes = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in self.shards]
        self._digest = digest("rlds", VERSION, fields.image, *(entry.rpartition(":")[0] for entry in sizes))
        name = f"{digest('rlds index', VERSION, str(folder.resolve()), fields.image, *sizes)}.npz"
        index = _load(FileCache(cache or user_cache("episodes")).get(name, 1 << 20, self._build))
        self._shard, self._offset, self._number = index.shard, index.offset, index.number
        self.steps, self._damaged = index.steps, index.damaged

    def key(self, index: int) -> str:
        return f"{self.shards[self._shard[index]].name}:{self._number[index]}"

    def read(self, index: int, images: bool = True) -> Episode:
        path, fields = self.shards[self._shard[index]], self.fields
        origin = f"{path} episode {self._number[index]}"
        example = Example(read_record(path, int(self._offset[index])), origin)
        steps = int(self.steps[index])
        encoded = example.byte_strings(f"{STEPS}/{fields.image}") if images else []
        if images and len(encoded) != steps:
            raise DataError(f"{origin}: {len(encoded)} images, and the index of the data set says {steps}")

        def frames(numbers: Sequence[int]) -> np.ndarray:
            found = {number: read_image(encoded[number], f"{origin} step {number}") for number in set(numbers)}
            if len({image.shape for image in found.values()}) > 1:
                raise DataError(f"{origin}: its images are of several sizes")
            return np.stack([found[number] for number in numbers])

        return Episode(
            self.key(index),
            origin,
            self._vectors(example, fields.actions, steps, origin),
            self._vectors(example, fields.states, steps, origin) if fields.states else None,
            self._instruction(example),
            frames,
            sum(map(len, encoded)),
        )

    def _vectors(self, example: Example, names: Sequence[str], steps: int, origin: str) -> np.ndarray:
        columns = []
        for name in names:
            values, width = example.numbers(f"{STEPS}/{name}"), int(np.prod(self.info.steps[name].shape))
            if len(values) != steps * width:
                raise DataError(f"{origin}: {name} has {len(values)} numbers, expected {steps} steps of {width}")
            columns.append(values.reshape(steps, width))
        return stacked(columns, steps, names, origin)

    def _instruction(self, example: Example) -> str:
        """The instruction of the first step, or of the episode."""
        name = self.fields.instruction
        if not name:
            return ""
        found = example.byte_strings(f"{STEPS}/{name}" if name in self.info.steps else name)
        return " ".join(found[0].decode("utf-8", "replace").split()) if found else ""

    def account(self) -> Account:
        account = Account()
        for line in self._damaged:
            account.leave("damaged record|", line)
        return account

    def fingerprint(self) -> str:
        return self._digest

    def describe(self) -> list[str]:
        splits = ", ".join(f"{name} ({len(shards)} shards)" for name, shards in self.info.splits.items())
        return [
            f"data set  {self.info.name} (RLDS), {splits}",
            *(f"  {name}: {_said(self.info.steps[name])}" for name in sorted(self.info.steps)),
        ]

    def _build(self, path: Path) -> None:
        """Write the index to a file."""
        rows: list[tuple[int, int, int, int]] = []
        damaged: list[str] = []
        total = sum(shard.stat().st_size for shard in self.shards)
        quiet = total < SHOWN_FROM or not sys.stderr.isatty()
        with ProgressBar(
            total=total, unit="B", unit_scale=True, desc=f"index of {self.info.name}", disable=quiet
        ) as bar:
            for place, shard in enumerate(self.shards):
                count = 0
                for number, (offset, data) in enumerate(scan(shard)):
                    count = number + 1
                    try:
                        if isinstance(data, DataError):
                            raise data
                        example = Example(data, f"{shard} at byte {offset}")
                        rows.append((place, offset, number, example.count(f"{STEPS}/{self.fields.image}")))
                    except DataError as error:
                        damaged.append(str(error))
                    bar.update(0 if isinstance(data, DataError) else len(data))
                if count < (wanted := self.info.splits[self.subset][shard]):
                    damaged.append(f"{shard}: ends after {count} of {wanted} records")
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
        with path.open("wb") as file:
            np.savez(
                file,
                shard=columns[0].astype(np.int32),
                offset=columns[1],
                number=columns[2].astype(np.int32),
                steps=columns[3],
                damaged=np.array(damaged, dtype=np.str_),
            )


def _load(path: Path) -> Index:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in ("shard", "offset", "number", "steps")}
        return Index(**arrays, damaged=tuple(stored["damaged"].tolist()))


def _check_fields(info: RldsInfo, fields: Fields, folder: Path) -> None:
    where = f"the steps of {folder}"
    if fields.image not in info.steps or info.steps[fields.image].kind != "image":
        images = [name for name, feature in info.steps.items() if feature.kind == "image"]
        raise wrong_field("image_key", fields.image, images, where)
    numbers = [name for name, feature in info.steps.items() if feature.kind == "number"]
    for setting, names in (("action_keys", fields.actions), ("state_keys", fields.states)):
        for name in names:
            if name not in numbers:
                raise wrong_field(setting, name, numbers, where)
    if not fields.actions:
        raise ConfigError(
            f"action_keys: empty, and {folder} is no data set whose fields are known; name some of {', '.join(numbers)}"
        )
    texts = [name for found in (info.steps, info.episode) for name, feature in found.items() if feature.kind == "text"]
    if fields.instruction and fields.instruction not in texts:
        raise wrong_field("instruction_key", fields.instruction, texts, where)


def _said(feature) -> str:
    shape = " x ".join(map(str, feature.shape))
    return " ".join(word for word in (feature.kind, feature.dtype, shape, feature.encoding) if word)
