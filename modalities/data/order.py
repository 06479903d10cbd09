"""The order of records as a function: position -> (epoch, record), with no state.

Resuming in the middle of an epoch, and with another number of devices, workers or microbatches, therefore needs
nothing but the step: its positions follow from it, and a position has one record. A loader's own resumable state
(mosaicml-streaming's state_dict, say) could at best restore the same thing, could be lost or be stale, and would
have to be split again for every other number of devices.

Plain sources: each epoch has its own keyed bijection of [0, size), a Feistel network over two digits (l, r) in
Z_a x Z_b with a * b just above `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains": generalized
Feistel, with cycle walking for what lies above). Time and memory do not depend on `size`.

Sources in blocks (shards, tars, row groups), whose samples are cheap to read only together: each epoch visits the
blocks in a keyed random order, W of them at a time. The order is cut into one slot per block; a slot holds a random
W-th part of its own block and of each of the W - 1 blocks before it, shuffled. From one slot to the next, one block
comes in and one goes out, so the reading is even. The first slots of an epoch look back to the last blocks of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from core.errors import DataError
from core.keys import key
from modalities.base import Source

_ROUNDS = 8
_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # of splitmix64


@dataclass(frozen=True)
class Blocks:
    """What a source says of itself whose samples are cheap to read only in blocks.

    Attributes:
        sizes: (blocks,) int64, samples of each block, in the order of the indices; 0 is allowed.
        window: W, the number of blocks that are read at a time: `shuffle_blocks` of its settings.
        scattered: [first, last) ranges of indices in which reading one after another has no use; the blocks there are
            only a way to mix them with the others, and their samples are shuffled over the whole range.
    """

    sizes: np.ndarray
    window: int
    scattered: tuple[tuple[int, int], ...] = ()


def place_in_blocks(ends: np.ndarray, index: int) -> tuple[int, int]:
    """(block, place in it) of a sample; the samples of block b end before number `ends[b]`."""
    block = int(np.searchsorted(ends, index, side="right"))
    return block, index - int(ends[block - 1] if block else 0)


def blocks_of(source: Source) -> Blocks | None:
    """The optional protocol method `blocks() -> Blocks | None`; None: any sample is read at equal cost."""
    ask = getattr(source, "blocks", None)
    found = ask() if ask else None
    return None if found is None or len(found.sizes) < 2 else found


class Order:
    """The order of one modality's records.

    Args:
        source: asked for its length and its blocks, once.
        seed, modality: two streams with other values have unrelated orders.

    Raises DataError for an empty source.
    """

    def __init__(self, source: Source, seed: int, modality: str):
        self.size, self.seed, self.modality = len(source), seed, modality
        if self.size < 1:
            raise DataError(f"{modality}: the source has {self.size} records, at least 1 is needed")
        self._blocks = blocks_of(source)
        if self._blocks is not None and int(self._blocks.sizes.sum()) != self.size:
            raise DataError(f"{modality}: {self.size} records in blocks of {int(self._blocks.sizes.sum())} together")
        self._epochs: dict[int, _Epoch] = {}

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, index) at a position 0, 1, 2, ...; those of one epoch, [e * size, (e + 1) * size), hold each index
        once. Raises DataError for a negative position."""
        if self._blocks is None:
            return record_at(position, self.size, self.seed, self.modality)
        if position < 0:
            raise DataError(f"{self.modality}: position {position} is negative")
        epoch, place = divmod(position, self.size)
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:  # a batch may lie across the end of an epoch
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = _Epoch.draw(self._blocks, key("blocks", self.seed, self.modality, epoch))
        return epoch, self._epochs[epoch].index(place)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_epochs": {}}


def record_at(position: int, size: int, seed: int, modality: str) -> tuple[int, int]:
    """(epoch, index) of a plain source of `size` records at a position, without an Order.

    Raises DataError for an empty source or a negative position.
    """
    if size < 1:
        raise DataError(f"{modality}: the source has {size} records, at least 1 is needed")
    if position < 0:
        raise DataError(f"{modality}: position {position} is negative")
    epoch, place = divmod(position, size)
    return epoch, permute(place, size, _round_keys(seed, modality, epoch))


@dataclass(frozen=True)
class _Epoch:
    """One epoch of a source in blocks; arrays as long as there are blocks.

    Attributes:
        blocks: what the source has.
        key: of the epoch.
        starts: first index of each block.
        visits: the order in which the blocks come in.
        slots: first place of each slot, and the end.
        window: W, at most the number of blocks.
    """

    blocks: Blocks
    key: int
    starts: np.ndarray
    visits: np.ndarray
    slots: np.ndarray
    window: int

    @classmethod
    def draw(cls, blocks: Blocks, epoch_key: int) -> _Epoch:
        sizes = blocks.sizes.astype(np.int64)
        count = len(sizes)
        window = min(blocks.window, count)
        visits = np.argsort(mix_array(np.arange(count, dtype=np.uint64), epoch_key), kind="stable")
        visited = sizes[visits]
        lengths = np.zeros(count, np.int64)
        for turn in range(window):  # part `turn` of a block lies `turn` slots after it came in
            lengths += np.roll(visited * (turn + 1) // window - visited * turn // window, turn)
        starts, slots = np.cumsum(sizes) - sizes, np.concatenate(([0], np.cumsum(lengths)))
        return cls(blocks, epoch_key, starts, visits, slots, window)

    def index(self, place: int) -> int:
        slot = int(np.searchsorted(self.slots, place, side="right")) - 1
        start, end = int(self.slots[slot]), int(self.slots[slot + 1])
        left = permute(place - start, end - start, _derived(self.key, 1, slot))
        for turn in range(self.window):
            block = int(self.visits[slot - turn])  # a negative place counts from the end, as is meant
            size = int(self.blocks.sizes[block])
            first = size * turn // self.window
            part = size * (turn + 1) // self.window - first
            if left < part:
                break
            left -= part
        index = int(self.starts[block]) + permute(first + left, size, _derived(self.key, 2, block))
        for low, high in self.blocks.scattered:
            if low <= index < high:
                return low + permute(index - low, high - low, _derived(self.key, 3, low))
        return index


def permute(place: int, size: int, round_keys: tuple[int, ...]) -> int:
    """The image of `place` under a bijection of [0, size)."""
    a = math.isqrt(size - 1) + 1  # ceil(sqrt(size))
    b = -(-size // a)  # a * b < size + a
    while True:
        left, right = divmod(place, b)
        for turn, round_key in enumerate(round_keys):
            if turn % 2 == 0:
                left = (left + _mix(right ^ round_key)) % a
            else:
                right = (right + _mix(left ^ round_key)) % b
        place = left * b + right
        if place < size:  # else walk on: the cycle of a start below `size` leads back below it
            return place


@lru_cache(maxsize=64)
def _round_keys(seed: int, modality: str, epoch: int) -> tuple[int, ...]:
    return tuple(key("order", seed, modality, epoch, turn) for turn in range(_ROUNDS))


@lru_cache(maxsize=1024)
def _derived(epoch_key: int, purpose: int, number: int) -> tuple[int, ...]:
    """Round keys of a slot or a block, made faster than by `key`."""
    base = _mix((epoch_key + purpose * _STEP) & _MASK) + number * _ROUNDS * _STEP
    return tuple(_mix((base + (turn + 1) * _STEP) & _MASK) for turn in range(_ROUNDS))


def _mix(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well-mixed bits out."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix_array(numbers: np.ndarray, base: int) -> np.ndarray:
    """splitmix64's output number n of the state `base`, for each n of a uint64 array."""
    value = numbers * np.uint64(_STEP) + np.uint64(base)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
