"""Weights and inputs as a formula of their name, shape and index, so that golden values need no stored weights.

Integers alone decide (splitmix64 of Steele, Lea, Flood 2014), so they are the same bits on any machine and version.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    """Values in [-1, 1), float32."""
    with np.errstate(over="ignore"):
        x = np.arange(prod(shape), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    values = (x >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(values.reshape(tuple(shape)))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors under their names: products that keep the size of what they act on, scales near 1, the rest near 0."""
    return {name: _weight(name, shape) for name, shape in shapes.items()}


def _weight(name: str, shape: Sequence[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = uniform(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * x
    if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):
        return 1 + 0.2 * x
    if name.endswith("weight_g"):  # the length of a normed weight
        return 0.6 + 0.2 * x
    if len(shape) > 1:
        return x * (3 / prod(shape[1:])) ** 0.5  # a uniform value in [-1, 1) has variance 1/3
    return 0.1 * x
