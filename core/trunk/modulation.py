"""adaLN with one row per noise level: every token is shifted, scaled and gated by the row of its own level.

A sample has K distinct levels, so K rows of shift, scale and gate. Left to itself, autograd keeps the rows
expanded to all L tokens until the backward pass, six times (B, L, D) a block. The two functions here keep the K
rows and the index instead, look the rows up once more in the backward pass, and add their gradients up directly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

MOST_LEVELS_BY_PRODUCT = 8


def modulate(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
    """shift[index] + x * scale[index].

    Args:
        x: (B, L, D), normed.
        shift, scale: (B, K, D) rows; `scale` already holds its 1.
        index: (B, L) integer row of each token, in [0, K); None when all tokens have the first row.

    Returns:
        (B, L, D), of the widest dtype of the three.
    """
    if index is None:
        return torch.addcmul(shift[:, :1], x, scale[:, :1])
    return _Modulate.apply(x, shift, scale, index)


def gated_add(x: Tensor, gate: Tensor, y: Tensor, index: Tensor | None) -> Tensor:
    """x + gate[index] * y, the residual update: x, y (B, L, D), gate (B, K, D); `index` as in `modulate`."""
    if index is None:
        return torch.addcmul(x, gate[:, :1], y)
    return _GatedAdd.apply(x, gate, y, index)


def look_up(rows: Tensor, index: Tensor) -> Tensor:
    """(B, K, D) rows, (B, L) index -> (B, L, D): the row of each token."""
    # Whole rows of one table are copied, about twice as fast on CPU as a product with a one-hot matrix.
    return rows.flatten(0, 1).index_select(0, _table_index(index, rows.shape[1])).unflatten(0, index.shape)


def sum_rows(values: Tensor, index: Tensor, levels: int) -> Tensor:
    """(B, L, D) values, (B, L) index -> (B, K, D): the sum over the tokens of each of K levels, the transpose of
    `look_up`. At least float32, since hundreds of tokens add up."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if levels > MOST_LEVELS_BY_PRODUCT:
        rows = values.new_zeros(index.shape[0] * levels, values.shape[-1])
        return rows.index_add(0, _table_index(index, levels), values.flatten(0, 1)).unflatten(0, (-1, levels))
    # Few rows would make a GPU's atomic additions wait for each other, in an order that changes from run to run.
    one_hot = index[:, None] == torch.arange(levels, device=index.device)[:, None]  # (B, K, L)
    with torch.autocast(values.device.type, enabled=False):  # for a backward pass that is run under autocast
        return one_hot.to(values.dtype) @ values


def _table_index(index: Tensor, levels: int) -> Tensor:
    """(B, L) in [0, K) -> (B * L,) in [0, B * K): where each token's row lies in the rows of all samples."""
    first = torch.arange(index.shape[0], device=index.device)[:, None] * levels
    return (first + index).flatten()


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
        return torch.addcmul(look_up(shift, index), x, look_up(scale, index))

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, shift, scale, index = inputs
        ctx.save_for_backward(x, scale, index)
        ctx.shift_dtype = shift.dtype

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, index = ctx.saved_tensors
        levels = scale.shape[1]
        for_x = (gradient * look_up(scale, index)).to(x.dtype)
        for_shift = sum_rows(gradient, index, levels).to(ctx.shift_dtype)
        for_scale = sum_rows(gradient * x, index, levels).to(scale.dtype)
        return for_x, for_shift, for_scale, None


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, gate: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return torch.addcmul(x, look_up(gate, index), y)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, gate, y, index = inputs
        ctx.save_for_backward(gate, y, index)
        ctx.x_dtype = x.dtype

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, y, index = ctx.saved_tensors
        for_y = (gradient * look_up(gate, index)).to(y.dtype)
        for_gate = sum_rows(gradient * y, index, gate.shape[1]).to(gate.dtype)
        return gradient.to(ctx.x_dtype), for_gate, for_y, None
