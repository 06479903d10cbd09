"""The activation of a SwiGLU against its definition."""

import torch
from torch.nn import functional as F

from core.trunk.layers import Gate


def test_gate_is_silu_of_one_half_times_the_other():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 10, dtype=torch.float64, generator=draw, requires_grad=True)
    torch.testing.assert_close(Gate()(x), F.silu(x[..., :5]) * x[..., 5:], atol=0, rtol=0)
    assert torch.autograd.gradcheck(Gate(), (x,))


def test_nothing_but_the_input_is_kept_for_the_backward_pass():
    kept = []
    x = torch.randn(2, 3, 10, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        Gate()(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
