"""RT-1 in constant memory: an index of its size, and workers that read for many epochs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("crc32c", reason="TFRecords need crc32c (extra `robots`)")
pytest.importorskip("psutil", reason="psutil measures memory")

import psutil
from torch.utils.data import DataLoader, Dataset

from modalities.episodes import source as source_module
from modalities.episodes.base import Fields
from modalities.episodes.rlds import RldsSet
from modalities.episodes.source import EpisodesSource, Reading
from modalities.episodes.windows import WindowPlan
from tests.modalities.episodes.making import example, jpeg, write_rlds

FIELDS = Fields("observation/image", ("action/world", "action/gripper"), ("observation/state",), "language_instruction")
SHARDS, EPISODES, STEPS = 1024, 87_212, 3_786_400  # of fractal20220817_data 0.1.0
MEGABYTE = 1 << 20


def test_the_index_of_all_of_rt1_takes_less_than_50_megabytes(tmp_path, monkeypatch):
    """Shards without bytes, of the real number and size."""
    rng = np.random.default_rng(0)
    steps = rng.multinomial(STEPS - 2 * EPISODES, np.full(EPISODES, 1 / EPISODES)) + 2
    shard = np.sort(rng.integers(0, SHARDS, EPISODES))

    def build(self: RldsSet, path: Path) -> None:
        with path.open("wb") as file:
            columns = {"shard": shard.astype(np.int32), "offset": rng.integers(0, 116 * MEGABYTE, EPISODES)}
            columns |= {"number": np.arange(EPISODES, dtype=np.int32), "steps": steps.astype(np.int64)}
            np.savez(file, **columns, damaged=np.array([], dtype=np.str_))

    folder = write_rlds(tmp_path / "set", [[]] * SHARDS)
    for path in folder.glob("*.tfrecord*"):
        with path.open("wb") as file:
            file.truncate(116 * MEGABYTE)
    monkeypatch.setattr(RldsSet, "_build", build)
    monkeypatch.setattr(source_module, "refuse_unusable", lambda *_: None)
    RldsSet(folder, FIELDS, 3.0, cache=tmp_path / "cache")
    tracemalloc.start()
    found = EpisodesSource(
        RldsSet(folder, FIELDS, 3.0, cache=tmp_path / "cache"),
        ("image", "video", "action"),
        Reading(WindowPlan(49, 6)),
    )
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == STEPS - EPISODES
    episode, step = found.place(len(found) - 1)
    assert (episode, step) == (EPISODES - 1, steps[-1] - 2)
    assert held < 10 * MEGABYTE, f"{held / MEGABYTE:.1f} MB"
    assert peak < 50 * MEGABYTE, f"{peak / MEGABYTE:.1f} MB"


class Decoded(Dataset):
    """Windows of some epochs one after another, decoded, each as the memory of the process that decoded it."""

    def __init__(self, source: EpisodesSource):
        self.source = source

    def __getitem__(self, item: int) -> tuple[int, int]:
        record = self.source.read(item % len(self.source))
        record.part("video").readable()
        record.part("image").readable()
        process = psutil.Process()
        return process.pid, process.memory_info().rss


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_workers_do_not_grow_over_50_epochs(tmp_path):
    columns = np.linspace(0, 255, 320).astype(np.uint8)
    frame = jpeg(np.broadcast_to(columns[None, :, None], (256, 320, 3)).copy())
    rows = [example(e, 3, frame=frame) for e in range(200)]
    episodes = RldsSet(write_rlds(tmp_path / "set", [rows[:100], rows[100:]]), FIELDS, 3.0, cache=tmp_path / "cache")
    source = EpisodesSource(episodes, ("image", "video", "action"), Reading(WindowPlan(4, 6)))
    epochs, size = 50, len(source)
    loader = DataLoader(Decoded(source), batch_size=None, sampler=range(epochs * size), num_workers=4)
    seen: dict[int, list[int]] = {}
    for pid, rss in loader:
        seen.setdefault(pid, []).append(rss)
    assert len(seen) == 4
    for rows_of_one in seen.values():
        early = max(rows_of_one[: len(rows_of_one) // 10])  # 5 epochs: code and buffers are there
        late = max(rows_of_one[-len(rows_of_one) // 10 :])
        print(f"{early / MEGABYTE:.1f} -> {late / MEGABYTE:.1f} MB")
        assert late < 1.05 * early, f"{early / MEGABYTE:.1f} -> {late / MEGABYTE:.1f} MB"
