"""The order of records as a function: position -> (epoch, record), with no permutation table and no state.

Each epoch has its own keyed bijection of [0, size): a Feistel network over two digits (l, r) in Z_a x Z_b with
a * b just above `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains": generalised Feistel, with
cycle walking for what lies above). Time and memory do not depend on `size`.
"""

from __future__ import annotations

import math
from functools import lru_cache

from core.errors import DataError
from core.keys import key

_ROUNDS = 8
_MASK = (1 << 64) - 1


def record_at(position: int, size: int, seed: int, modality: str) -> tuple[int, int]:
    """(epoch, index) of the record at a position of a modality's endless stream.

    Args:
        position: 0, 1, 2, ...
        size: records of the source. Positions of one epoch, [e * size, (e + 1) * size), hold each index once.
        seed, modality: two streams with other values have unrelated orders.

    Raises DataError for an empty source or a negative position.
    """
    if size < 1:
        raise DataError(f"{modality}: the source has {size} records, at least 1 is needed")
    if position < 0:
        raise DataError(f"{modality}: position {position} is negative")
    epoch, place = divmod(position, size)
    return epoch, permute(place, size, _round_keys(seed, modality, epoch))


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


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): 64 bits in, 64 well-mixed bits out."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
