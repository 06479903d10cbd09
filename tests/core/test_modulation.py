"""Modulation by row: against a look-up written out, its gradients, dtypes, what it keeps, and compilation."""

import pytest
import torch
from torch.autograd import gradcheck

from core.trunk.modulation import MOST_LEVELS_BY_PRODUCT, gated_add, modulate, token_rows

B, L, D = 2, 12, 3
LEVELS = [2, 3, MOST_LEVELS_BY_PRODUCT, MOST_LEVELS_BY_PRODUCT + 1, L]


def example(levels, dtype=torch.float64, indexed=True):
    """x, y (B, L, D); shift, scale, gate (B, K, D) as trunks have them, views of one tensor; and an index (B, L)."""
    draw = torch.Generator().manual_seed(levels)
    x, y = torch.randn(2, B, L, D, generator=draw, dtype=torch.float64).to(dtype)
    rows = torch.randn(B, levels, 3 * D, generator=draw, dtype=torch.float64).to(dtype).chunk(3, dim=-1)
    index = torch.randint(levels, (B, L), generator=draw) if indexed else None
    return [x, y, *rows], index


def expanded(rows, index):
    """(B, L, D), sample by sample."""
    if index is None:
        return rows[:, :1]
    return torch.stack([rows[sample][index[sample]] for sample in range(len(rows))])


def by_hand(x, y, shift, scale, gate, index):
    return x * expanded(scale, index) + expanded(shift, index), x + expanded(gate, index) * y


def ours(x, y, shift, scale, gate, index):
    rows = token_rows(index, shift.shape[1])
    return modulate(x, shift, scale, rows), gated_add(x, gate, y, rows)


def gradients(function, tensors, index, weight):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    modulated, added = function(*leaves, index)
    return torch.autograd.grad((modulated * weight).sum() + (added * weight.cos()).sum(), leaves)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("levels", LEVELS)
def test_values_and_gradients_equal_the_look_up_written_out(levels, indexed):
    tensors, index = example(levels, indexed=indexed)
    weight = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, wanted in zip(ours(*tensors, index), by_hand(*tensors, index), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-14, rtol=1e-14)
    pairs = zip(gradients(ours, tensors, index, weight), gradients(by_hand, tensors, index, weight), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("levels", LEVELS)
def test_gradcheck(levels):
    tensors, index = example(levels)
    assert gradcheck(lambda *leaves: ours(*leaves, index), [tensor.clone().requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("levels", [2, L])
def test_a_row_without_tokens_gets_no_gradient(levels):
    tensors, index = example(levels)
    _, _, *of_rows = gradients(ours, tensors, torch.ones_like(index), torch.ones(B, L, D, dtype=torch.float64))
    for rows in of_rows:
        assert rows[:, 1].all()
        assert not rows[:, 0].any()
        assert not rows[:, 2:].any()


@pytest.mark.parametrize("levels", [2, MOST_LEVELS_BY_PRODUCT + 1])
def test_only_rows_and_one_activation_are_kept(levels):
    """Of the size of (B, L, D) nothing but x for modulate and y for gated_add, which others hold anyway."""
    tensors, index = example(levels)
    x, y, *_ = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(*leaves, index)
    large = [tensor.data_ptr() for tensor in kept if tensor.shape == (B, L, D)]
    assert sorted(large) == sorted([x.data_ptr(), y.data_ptr()])


@pytest.mark.parametrize("levels", [2, L])
def test_mixed_precision_as_under_autocast(levels):
    """float32 tokens, bfloat16 rows and branch: a float32 result, and every gradient in the dtype of its input."""
    (x, *others), index = example(levels, torch.bfloat16)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x.float(), *others)]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    found, wanted = ours(*leaves, index), by_hand(*exact, index)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, atol=1e-6, rtol=1e-6)
    wanted = torch.autograd.grad(sum(part.square().sum() for part in wanted), exact)
    with torch.autocast("cpu", torch.bfloat16):  # must not touch the sums, wherever backward is called
        found = torch.autograd.grad(sum(part.square().sum() for part in found), leaves)
    for leaf, one, other in zip(leaves, found, wanted, strict=True):
        assert one.dtype == leaf.dtype
        tolerance = 1e-5 if leaf.dtype == torch.float32 else 2**-8  # one rounding to bfloat16
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=tolerance)


@pytest.mark.parametrize("levels", [2, L])
def test_row_gradients_of_half_precision_are_summed_in_float32(levels):
    """The sum of 4096 ones: bfloat16 would stop at 256."""
    tokens = 4096
    rows = token_rows(torch.ones(1, tokens, dtype=torch.long), levels)
    scale = torch.ones(1, levels, D, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(1, tokens, D, dtype=torch.bfloat16)
    for result in (modulate(ones, scale, torch.ones_like(scale), rows), gated_add(ones, scale, ones, rows)):
        (gradient,) = torch.autograd.grad(result.sum(), scale)
        assert gradient.dtype == torch.bfloat16
        assert gradient[:, 1].tolist() == [[tokens] * D]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("levels", [2, L])
def test_one_graph_for_the_compiler_with_its_backward(levels, backend):
    tensors, index = example(levels)
    weight = torch.randn(B, L, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    pairs = zip(gradients(compiled, tensors, index, weight), gradients(ours, tensors, index, weight), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, atol=1e-13, rtol=1e-13)


def test_without_gradients_nothing_changes():
    tensors, index = example(2)
    with torch.no_grad():
        found = ours(*[tensor.clone().requires_grad_() for tensor in tensors], index)
    assert not any(result.requires_grad for result in found)
    for result, wanted in zip(found, ours(*tensors, index), strict=True):
        assert torch.equal(result, wanted)
