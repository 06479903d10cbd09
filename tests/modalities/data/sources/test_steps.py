"""The records of a step are a function of the step, for every kind of source: workers, resuming, devices, damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.errors import DataError
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.training.mixing import StreamMix
from modalities.base import Source
from modalities.conditioning import TextConfig
from modalities.conditioning.conditions import ConditionConfig, Conditions
from modalities.data.batches import RawBatch
from modalities.data.loader import StepDataset, StepLoader
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import Stream, make_parts
from tests.modalities.data.sets import COUNT, KINDS, cut, flip, number_of, open_set, write_set

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")

BATCH = 8
EPOCH = COUNT // BATCH
TEXT = ConditionConfig(text=TextConfig(vocabulary=64, max_words=6, rows_per_word=4))


def dataset(source: Source, accumulate: int = 1) -> StepDataset:
    adapter = ImageAdapter(ImageConfig([8, 8]))
    stream = Stream(source, make_parts({"image": adapter}), TimestepConfig(), 0.25)
    mix = StreamMix(0, {"image": 1.0}, {"image": BATCH})
    return StepDataset(0, mix, {"image": stream}, NoisingConfig(), Conditions(TEXT, []), accumulate)


def steps(source: Source, first: int, last: int, workers: int = 0, accumulate: int = 1) -> dict[int, list[tuple]]:
    """step -> for each microbatch its keys, its tokens, its noise and what was rejected."""
    loader = StepLoader(dataset(source, accumulate), workers)
    return {step: [_content(item) for item in items] for step, items in loader.steps(first, last)}


def _content(item: RawBatch) -> tuple:
    tensors = item.parts[0].latents, item.parts[0].noise, item.student.values
    return item.keys, tuple(tensor.numpy().tobytes() for tensor in tensors), item.rejected


def keys(found: dict[int, list[tuple]]) -> list[str]:
    return [key for items in found.values() for names, _, _ in items for key in names]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_resuming_and_devices_change_no_record(tmp_path, kind):
    config = write_set(kind, tmp_path / "set")
    whole = steps(open_set(config), 0, 2 * EPOCH)
    for epoch in (0, 1):
        found = keys({step: whole[step] for step in range(epoch * EPOCH, (epoch + 1) * EPOCH)})
        assert len(set(found)) == len(found) == COUNT
    assert keys(whole)[:COUNT] != keys(whole)[COUNT:]
    for workers in (1, 4):
        assert steps(open_set(config), 0, 2 * EPOCH, workers) == whole
    middle = EPOCH + 2  # of the second epoch, in a process that has seen nothing of the first
    assert steps(open_set(config), middle, 2 * EPOCH, 1) == {step: whole[step] for step in range(middle, 2 * EPOCH)}
    for parts in (2, 4):  # as microbatches of as many devices
        split = steps(open_set(config), 3, 5, accumulate=parts)
        assert [len(items) for items in split.values()] == [parts] * 2
        assert keys(split) == keys({step: whole[step] for step in (3, 4)})


DAMAGE: dict[str, tuple[str, Callable[[Path], None], int]] = {
    # name: (kind, what is done to the files, how many of the records it costs)
    "folder: zero bytes": ("folder", lambda f: (f / "07.png").write_bytes(b""), 1),
    "folder: cut short": ("folder", lambda f: cut(f / "07.png", 0.6), 1),
    "folder: gone": ("folder", lambda f: (f / "07.png").unlink(), 1),
    "tar: cut short": ("webdataset", lambda f: cut(f / "shard-2.tar", 0.2), 8),
    "tar: zero bytes": ("webdataset", lambda f: (f / "shard-2.tar").write_bytes(b""), 10),
    "tar: gone": ("webdataset", lambda f: (f / "shard-2.tar").unlink(), 10),
    "parquet: a page flipped": ("parquet", lambda f: flip(f / "part-1.parquet", 40, 4), 10),
    "parquet: gone": ("parquet", lambda f: (f / "part-1.parquet").unlink(), 20),
    "mds: flipped": ("mds", lambda f: flip(f / "shard.00001.mds", 900), 10),
    "mds: cut short": ("mds", lambda f: cut(f / "shard.00001.mds", 0.9), 10),
    "mds: zero bytes": ("mds", lambda f: (f / "shard.00001.mds").write_bytes(b""), 10),
    "mds: gone": ("mds", lambda f: (f / "shard.00001.mds").unlink(), 10),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_while_training_is_replaced_the_same_way_by_any_number_of_workers(tmp_path, name):
    """The source was opened when all was well; then the files were damaged."""
    kind, damage, cost = DAMAGE[name]
    config = write_set(kind, tmp_path / "set")
    good = keys(steps(open_set(config), 0, EPOCH))
    source = open_set(config)
    damage(tmp_path / "set")
    lost = set(good) - usable(source)
    assert cost - 2 <= len(lost) <= cost + 2  # a block holds about ten records
    found = steps(source, 0, EPOCH)
    used = keys(found)
    assert not lost & set(used)
    # A place whose record is whole holds it, as if nothing had happened; the others hold that of a later place.
    assert all(now == was for now, was in zip(used, good, strict=True) if was not in lost)
    rejected = [entry for items in found.values() for _, _, entries in items for entry in entries]
    assert {entry.position for entry in rejected} == {place for place, was in enumerate(good) if was in lost}
    assert all(str(tmp_path) in entry.reason or str(tmp_path) in entry.origin for entry in rejected)
    for workers in (1, 4) if cost == 10 and "gone" not in name else (1,):
        assert steps(source, 0, EPOCH, workers) == found


def usable(source: Source) -> set[str]:
    """Keys of the records that can be read and decoded."""
    adapter, good = ImageAdapter(ImageConfig([8, 8])), set()
    for index in range(len(source)):
        try:
            record = source.read(index)
            adapter.load(record, torch.Generator())
        except DataError:
            continue
        good.add(record.key)
    return good


@pytest.mark.parametrize("kind", KINDS)
def test_captions_belong_to_their_images(tmp_path, kind):
    source = open_set(write_set(kind, tmp_path / "set"))
    adapter = ImageAdapter(ImageConfig([8, 8]))
    for index in range(len(source)):
        record = source.read(index)
        media = adapter.load(record, torch.Generator())
        level = round((float(media.mean()) + 1) * 127.5)
        assert level == number_of(record.captions)
