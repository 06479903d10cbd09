"""A trunk whose samples do not depend on how many there are, on a CPU.

Norms, attention, sums and products of elements give each sample the same bytes in any batch. Two things may not:

- Matrix products: their kernel is chosen by the number of rows, and each rounds in its own way. One row goes through a
  matrix-vector kernel, few rows through others, and several threads may divide the sum itself.
- Activations: what is left over at the end of a thread's share, when it is no multiple of the vector length, goes
  through other code than whole vectors.

So both take the whole batch at once only where that gives the bytes of one sample alone, and else sample by sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.keys import generator
from core.trunk.layers import Gate

VECTOR = 64  # numbers, a multiple of what any CPU's loops take at once
ALIGNMENT = 64  # bytes; where a tensor starts can choose the kernel, too, and fresh ones start at a multiple


class EachSampleSiLU(nn.SiLU):
    def forward(self, input: Tensor) -> Tensor:
        return _activated(super().forward, input)


class EachSampleGELU(nn.GELU):
    def forward(self, input: Tensor) -> Tensor:
        return _activated(super().forward, input)


class EachSampleGate(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return _activated(super().forward, x, parts=2)


def _activated(function: Callable[[Tensor], Tensor], x: Tensor, parts: int = 1) -> Tensor:
    """`parts` numbers of the last dimension make one."""
    numbers, size, width = x.numel() // parts, len(x), x.shape[-1] // parts
    if size == 1 or (_is_even(numbers, width) and _is_even(numbers // size, width)):
        return function(x)
    return torch.cat([function(row) for row in x.split(1)])


def _is_even(numbers: int, width: int) -> bool:
    """Whether no number of threads leaves a part of a vector over, whatever number PyTorch takes."""
    shares = (-(-numbers // threads) for threads in range(1, torch.get_num_threads() + 1))
    return width % VECTOR == 0 and all(share % VECTOR == 0 for share in shares)


class EachSampleLinear(nn.Linear):
    """A linear layer that gives every sample of (B, ..., K) the bytes that it has in a batch of one."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.flatten(1)  # (N, K)
        rows = _aligned(input.contiguous()).view(len(input), -1, input.shape[-1])  # (B, L, K)
        shape = (*input.shape[:-1], len(weight))
        if self._is_alike(rows):
            return F.linear(rows, weight, self.bias).view(shape)
        # Samples often share a time or the null condition; their single row is then the same, and so is its product.
        new = [True] * len(rows) if rows.shape[1] > 1 else [True, *(rows[1:] != rows[:-1]).flatten(1).any(1).tolist()]
        if not any(new[1:]):
            return F.linear(rows[:1], weight, self.bias).expand(len(rows), -1, -1).view(shape)
        made: list[Tensor] = []
        for row, is_new in zip(rows.split(1), new, strict=True):
            made.append(F.linear(_aligned(row), weight, self.bias) if is_new else made[-1])
        return torch.cat(made).view(shape)

    def _is_alike(self, rows: Tensor) -> bool:
        if torch.is_autocast_enabled("cpu"):  # then products are of another precision
            return len(rows) == 1
        bias = cast(Tensor | None, self.bias) is not None
        return is_alike(*rows.shape, self.out_features, bias, rows.dtype, torch.get_num_threads())


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


@lru_cache(maxsize=4096)
def is_alike(size: int, length: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, threads: int) -> bool:
    """Whether rows of (size, length, inputs) have the same product as those of one sample, tried with random numbers.

    Kernels are chosen by shapes and by the number of threads, and not by values.
    """
    if size == 1:
        return True
    draw = generator("is_alike", size, length, inputs, outputs)
    one = torch.randn(1, length, inputs, generator=draw, dtype=dtype)
    weight = torch.randn(outputs, inputs, generator=draw, dtype=dtype)
    shift = torch.randn(outputs, generator=draw, dtype=dtype) if bias else None
    alone = F.linear(one, weight, shift)
    return bool((F.linear(one.repeat(size, 1, 1), weight, shift) == alone).all())


KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: EachSampleLinear,
    nn.SiLU: EachSampleSiLU,
    nn.GELU: EachSampleGELU,
    Gate: EachSampleGate,
}


def each_sample(trunk: nn.Module) -> nn.Module:
    """The trunk with the same parameters, in which no sample depends on its neighbors; the given one stays as it is.

    Weights must act through `nn.Linear` and activations be modules of `KINDS`, on tensors whose first dimension is that
    of the samples, as in all trunks here.
    """
    made: dict[nn.Module, nn.Module] = {}

    def view_of(module: nn.Module) -> nn.Module:
        if module not in made:
            view = made[module] = copy.copy(module)
            inner = vars(module)["_modules"].items()
            vars(view)["_modules"] = {name: part and view_of(part) for name, part in inner}
            for kind, of_each_sample in KINDS.items():
                if isinstance(view, kind):
                    view.__class__ = of_each_sample
        return made[module]

    return view_of(trunk)
