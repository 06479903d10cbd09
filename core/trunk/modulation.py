"""adaLN with one row per noise level: every token is shifted, scaled and gated by the row of its own level.

A sample has K distinct levels, so K rows of shift, scale and gate. Left to itself, autograd keeps the rows
expanded to all L tokens until the backward pass, six times (B, L, D) a block. The two functions here keep the K
rows instead, look them up once more in the backward pass, and add their gradients up directly.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

MOST_LEVELS_BY_PRODUCT = 8


class TokenRows(NamedTuple):
    """Which of its sample's K rows each of L tokens has, prepared once per forward in the forms that are used.

    Attributes:
        table: (B * L,) in [0, B * K), the row's place among the rows of all samples; for looking rows up.
        one_hot: (B, K, L) float32, for adding gradients up; None when there are many levels.
    """

    table: Tensor
    one_hot: Tensor | None


def token_rows(index: Tensor | None, levels: int) -> TokenRows | None:
    """index (B, L) of each token's row in [0, levels), or None, which stays None: all tokens have the first row."""
    if index is None:
        return None
    first = torch.arange(index.shape[0], device=index.device)[:, None] * levels
    one_hot = None
    if levels <= MOST_LEVELS_BY_PRODUCT:
        one_hot = (index[:, None] == torch.arange(levels, device=index.device)[:, None]).float()
    return TokenRows((first + index).flatten(), one_hot)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, rows: TokenRows | None) -> Tensor:
    """x * scale + shift, each token with its own row.

    Args:
        x: (B, L, D), normed.
        shift, scale: (B, K, D); `scale` already holds its 1.
        rows: of the tokens; None when all have the first.

    Returns:
        (B, L, D), of the widest dtype of the three.
    """
    if rows is None:
        return torch.addcmul(shift[:, :1], x, scale[:, :1])
    return _Modulate.apply(x, shift, scale, *rows)


def gated_add(x: Tensor, gate: Tensor, y: Tensor, rows: TokenRows | None) -> Tensor:
    """x + gate * y, the residual update: x, y (B, L, D), gate (B, K, D); `rows` as in `modulate`."""
    if rows is None:
        return torch.addcmul(x, gate[:, :1], y)
    return _GatedAdd.apply(x, gate, y, *rows)


def _look_up(values: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, K, D) -> (B, L, D) of `dtype`: a fresh copy of each token's row, in which callers go on to calculate.

    Results made in place need no second (B, L, D), whose allocation takes as long as the arithmetic.
    """
    # Whole rows of one table are copied, on CPU twice as fast as a product with a one-hot matrix.
    return values.to(dtype).flatten(0, 1).index_select(0, table).unflatten(0, (values.shape[0], -1))


def _widest(*tensors: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def _add_up(values: Tensor, like: Tensor, table: Tensor, one_hot: Tensor | None) -> Tensor:
    """(B, L, D) -> (B, K, D) as `like`: the sum over the tokens of each row, the transpose of `_look_up`.

    Summed in float32 at least, since thousands of tokens may share a row.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if one_hot is None:
        sums = values.new_zeros(like.shape).flatten(0, 1)
        return sums.index_add(0, table, values.flatten(0, 1)).view(like.shape).to(like.dtype)
    # With few rows, a GPU's atomic additions would wait for each other, and in an order that is never the same.
    with torch.autocast(values.device.type, enabled=False):  # for a backward pass that runs under autocast
        return (one_hot.to(values.dtype) @ values).to(like.dtype)


class _Context(FunctionCtx):
    """What autograd hands over from forward to backward, as far as it is used here."""

    saved_tensors: tuple[Tensor, ...]
    x_dtype: torch.dtype


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, shift: Tensor, scale: Tensor, table: Tensor, one_hot: Tensor | None) -> Tensor:
        dtype = _widest(x, shift, scale)
        return _look_up(shift, table, dtype).addcmul_(x, _look_up(scale, table, dtype))

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - there is one gradient, of the one output
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, shift, scale, *rows = ctx.saved_tensors
        for_x = _look_up(scale, rows[0], gradient.dtype).mul_(gradient).to(x.dtype)
        return for_x, _add_up(gradient, shift, *rows), _add_up(gradient * x, scale, *rows), None, None


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gate: Tensor, y: Tensor, table: Tensor, one_hot: Tensor | None) -> Tensor:
        return _look_up(gate, table, _widest(x, gate, y)).mul_(y).add_(x)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *saved = inputs
        ctx.save_for_backward(*saved)
        ctx.x_dtype = x.dtype

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - there is one gradient, of the one output
        ctx: _Context, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        gate, y, *rows = ctx.saved_tensors
        for_y = _look_up(gate, rows[0], gradient.dtype).mul_(gradient).to(y.dtype)
        return gradient.to(ctx.x_dtype), _add_up(gradient * y, gate, *rows), for_y, None, None
