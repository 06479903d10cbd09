"""Small pieces that all trunks use: time embedding, norms, layer numbers, initialization."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from core.keys import generator


def sinusoid(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """(...) times -> (..., width) float32 features [cos, sin], the order of the DiT and SiT code."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[..., None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimestepEmbedder(nn.Module):
    """(B, K) levels -> (B, K, D). `scale` multiplies the level before the sinusoid: 1 in SiT, 1000 in FLUX.2."""

    def __init__(self, width: int, scale: float = 1.0, frequencies: int = 256, bias: bool = True):
        super().__init__()
        self.scale, self.frequencies = scale, frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width, bias), nn.SiLU(), nn.Linear(width, width, bias))

    def forward(self, levels: Tensor) -> Tensor:
        features = sinusoid(levels * self.scale, self.frequencies)
        return self.mlp(features.to(cast(nn.Linear, self.mlp[0]).weight.dtype))


def plain_norm(x: Tensor) -> Tensor:
    """LayerNorm over the width without learned scale and shift, eps 1e-6, as every DiT has it."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class Gate(nn.Module):
    """(..., 2H) -> silu(first half) x second half, (..., H): the activation of a SwiGLU.

    Nothing but its input is kept for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _Gate.apply(x)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return nn.functional.silu(gate).mul_(value)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        for_gate = torch.ops.aten.silu_backward(gradient * value, gate)
        return torch.cat([for_gate, gradient * nn.functional.silu(gate)], dim=-1)


class SwiGLU(nn.Module):
    """Linear(D, 2H), silu(first half) x second half, Linear(H, D), without biases (FLUX.2)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = Gate()
        self.linear1 = nn.Linear(width, 2 * hidden, bias=False)
        self.linear2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.gate(self.linear1(x)))


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The blocks of any trunk, in their order: what is sharded, compiled and computed again one by one."""
    lists = (getattr(trunk, name, ()) for name in ("double_blocks", "single_blocks", "blocks"))
    return [block for own in lists for block in cast(nn.ModuleList, own)]


def layer_fraction(fraction: float, depth: int) -> int:
    """The 1-based layer nearest to `fraction` of the depth: .3 and .7 of 28 give 8 and 20 (paper A.3)."""
    return max(1, min(depth, math.floor(fraction * depth + 0.5)))


@torch.no_grad()
def fill(parameter: Tensor, value: Tensor) -> None:
    """parameter <- value of the same shape, in place; of a sharded parameter, what lies on this device."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor  # slow to import, and not needed to sample

        sharded: Any = parameter
        value = value.to(sharded.device, sharded.dtype)
        value = distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
    parameter.copy_(value)


@torch.no_grad()
def initialize(module: nn.Module, seed: int, standard_deviation: dict[str, float], zero: tuple[str, ...]) -> None:
    """Initialize every parameter by its name, so that adding a part never changes another part's start. A sharded
    module gets the weights of a whole one; no more than one parameter is whole at a time.

    Linear weights are Xavier-uniform and biases zero, as in DiT. `standard_deviation` maps a name's part to the
    deviation of a normal draw; names that contain a part of `zero` start at zero. Other one-dimensional weights are
    the scales of norms and start at 1.
    """
    for name, parameter in module.named_parameters():
        draw = generator(seed, "initialise", name)
        deviation = next((value for part, value in standard_deviation.items() if part in name), None)
        if any(part in name for part in zero) or name.endswith("bias"):
            parameter.zero_()
        elif deviation is not None:
            fill(parameter, torch.randn(parameter.shape, generator=draw) * deviation)
        elif parameter.ndim >= 2:
            fan_out, fan_in = parameter.shape[0], parameter.shape[1:].numel()
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            fill(parameter, (torch.rand(parameter.shape, generator=draw) * 2 - 1) * bound)
        else:
            parameter.fill_(1.0)
