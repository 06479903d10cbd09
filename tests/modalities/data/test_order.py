import pickle
import time

import numpy as np
import pytest

from core.errors import DataError
from modalities.data.order import Blocks, Order, record_at


def epoch_order(size: int, epoch: int, seed: int = 0, modality: str = "image") -> list[int]:
    pairs = [record_at(epoch * size + place, size, seed, modality) for place in range(size)]
    assert {e for e, _ in pairs} == {epoch}
    return [index for _, index in pairs]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 63, 64, 65, 97, 100, 255, 256, 257, 1009, 1023, 1025])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_holds_each_record_once(size, epoch):
    assert sorted(epoch_order(size, epoch)) == list(range(size))


def test_epochs_seeds_and_modalities_have_other_orders():
    orders = [
        epoch_order(200, 0),
        epoch_order(200, 1),
        epoch_order(200, 0, seed=1),
        epoch_order(200, 0, modality="audio"),
    ]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two unrelated orders agree at one place on average; 8 or more has a probability of 1e-5.
            assert sum(x == y for x, y in zip(first, second, strict=True)) < 8


def test_the_order_is_a_fixed_function():
    assert [record_at(p, 10, 3, "video") for p in (0, 9, 10, 12345)] == [
        record_at(p, 10, 3, "video") for p in (0, 9, 10, 12345)
    ]
    assert epoch_order(7, 0) == GOLDEN_7  # a change would silently reorder the data of every run that is resumed


GOLDEN_7 = [5, 2, 4, 6, 1, 0, 3]


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_records_are_equally_likely_at_every_place(size):
    epochs = 400 * size
    counts = np.zeros((size, size))
    for position in range(epochs * size):
        epoch, index = record_at(position, size, 0, "image")
        counts[position - epoch * size, index] += 1
    expected = epochs / size
    # Each cell is about Poisson; five deviations over at most 144 cells.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_neighbors_in_the_order_are_unrelated():
    order = np.array(epoch_order(4096, 0))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06  # deviation is 1 / sqrt(4095) = 0.016
    assert abs(np.corrcoef(order, np.arange(4096))[0, 1]) < 0.06
    blocks = np.bincount(order[:512] // 64, minlength=64)  # the first eighth visits all of the range evenly
    assert ((blocks - 8) ** 2 / 8).sum() < 64 + 5 * np.sqrt(2 * 64)


def test_a_huge_source_needs_no_table():
    size = 200_000_000
    seen = {record_at(position, size, 0, "image")[1] for position in range(1000)}
    assert len(seen) == 1000
    assert max(seen) < size
    assert record_at(size, size, 0, "image")[0] == 1


def test_an_empty_source_and_a_negative_position_are_refused():
    with pytest.raises(DataError, match="0 records"):
        record_at(0, 0, 0, "image")
    with pytest.raises(DataError, match="negative"):
        record_at(-1, 5, 0, "image")


class InBlocks:
    """A source of which only the length and the blocks are asked."""

    def __init__(self, sizes, window: int = 4, scattered=()):
        self.sizes = np.array(sizes, dtype=np.int64)
        self.window, self.scattered = window, tuple(scattered)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def blocks(self) -> Blocks:
        return Blocks(self.sizes, self.window, self.scattered)


def one_epoch(order: Order, epoch: int) -> list[int]:
    pairs = [order.at(epoch * order.size + place) for place in range(order.size)]
    assert {e for e, _ in pairs} == {epoch}
    return [index for _, index in pairs]


UNEVEN = [int(size) for size in np.random.default_rng(0).integers(0, 40, 60)]


@pytest.mark.parametrize("sizes", [[5], [1, 1], [0, 4, 0, 7, 1], [100, 1], [1] * 33, [3, 0], UNEVEN])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 1000])
def test_every_epoch_in_blocks_holds_each_record_once(sizes, window):
    order = Order(InBlocks(sizes, window), 0, "image")
    for epoch in (0, 1, 7):
        assert sorted(one_epoch(order, epoch)) == list(range(sum(sizes)))


def test_few_blocks_are_read_at_a_time_and_one_comes_in_with_each_slot():
    sizes, window = np.random.default_rng(1).integers(30, 60, 100), 8
    block = np.searchsorted(np.cumsum(sizes), one_epoch(Order(InBlocks(sizes, window), 0, "image"), 0), side="right")
    size = int(sizes.mean())
    for start in range(0, len(block) - size, size):
        assert len(set(block[start : start + size])) <= window + 3  # at most a few slots begin within a mean size
    first, last = {}, {}
    for place, number in enumerate(block):
        first.setdefault(number, place)
        last[number] = place
    spans = np.array([last[number] - first[number] for number in first])
    looked_back = (spans > len(block) / 2).sum()
    assert looked_back == window - 1  # of the first slots
    assert np.median(spans) < (window + 1) * size
    # Each stretch mixes the samples of `window` blocks evenly: neighbors are of one block in one case of eight.
    same = np.mean(block[1:] == block[:-1])
    assert abs(same - 1 / window) < 5 * np.sqrt(1 / window / len(block))


def test_blocks_and_their_records_take_turns_in_another_order_each_epoch():
    source = InBlocks([20] * 30)
    others = [Order(source, 1, "image"), Order(source, 0, "audio")]
    orders = [one_epoch(Order(source, 0, "image"), epoch) for epoch in (0, 1)] + [one_epoch(o, 0) for o in others]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(x == y for x, y in zip(one, other, strict=True)) < 8
    within = [[index % 20 for index in order if index // 20 == 3] for order in orders]
    assert len({tuple(rows) for rows in within}) == len(within)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_records_of_equal_blocks_are_equally_likely_at_every_place(window):
    epochs = 800
    order = Order(InBlocks([6] * 3, window), 0, "image")
    counts = np.zeros((18, 18))
    for position in range(epochs * 18):
        epoch, index = order.at(position)
        counts[position - epoch * 18, index] += 1
    expected = epochs / 18
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_the_order_in_blocks_is_a_fixed_function():
    """Positions in any sequence, in another process, by another object: a resumed run needs nothing but the step."""
    source = InBlocks(UNEVEN)
    order = Order(source, 3, "video")
    positions = [*range(3 * len(source)), 5, 10**9, 0]
    forwards = {position: order.at(position) for position in positions}
    other = pickle.loads(pickle.dumps(order))
    assert {position: other.at(position) for position in reversed(positions)} == forwards
    assert one_epoch(Order(InBlocks([2, 3, 2], 2), 0, "image"), 0) == GOLDEN_BLOCKS  # as GOLDEN_7


GOLDEN_BLOCKS = [6, 3, 2, 0, 5, 4, 1]


def test_one_block_is_ordered_as_a_plain_source():
    order = Order(InBlocks([50]), 0, "image")
    assert [order.at(position) for position in range(100)] == [record_at(p, 50, 0, "image") for p in range(100)]


def test_scattered_ranges_are_shuffled_as_a_whole():
    """Records 100..299 have no use for being read together: neighbors there are unrelated."""
    order = Order(InBlocks([20] * 15, window=2, scattered=[(100, 300)]), 0, "image")
    found = one_epoch(order, 0)
    assert sorted(found) == list(range(300))
    scattered = np.array([index for index in found if index >= 100])
    assert len(set((scattered[:40] - 100) // 20)) >= 8  # 2 or 3 if they were blocks
    kept = [index // 20 for index in found if index < 100]
    assert len(set(kept[:20])) <= 4


def test_two_hundred_thousand_blocks_are_quick():
    source = InBlocks(np.full(200_000, 1000), window=16)
    order = Order(source, 0, "image")
    begun = time.process_time()
    order.at(0)
    assert time.process_time() - begun < 3  # 0.1 s on an idle core
    begun = time.process_time()
    found = {order.at(position)[1] for position in range(10**8, 10**8 + 5000)}
    assert time.process_time() - begun < 2.5  # 25 us each
    assert len(found) == 5000
    assert len({index // 1000 for index in found}) <= 16 + 6


def test_sources_that_disagree_with_themselves_are_refused():
    class Lying(InBlocks):
        def __len__(self) -> int:
            return 7

    with pytest.raises(DataError, match="7 records in blocks of 5 together"):
        Order(Lying([2, 3]), 0, "image")
    with pytest.raises(DataError, match="0 records"):
        Order(InBlocks([0, 0]), 0, "image")
    with pytest.raises(DataError, match="negative"):
        Order(InBlocks([2, 3]), 0, "image").at(-1)
