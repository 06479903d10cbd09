"""Blocks that are computed again: the same bits, in every trunk, compiled and sharded, and less that is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.trunk.flux2 import Flux2Settings
from core.trunk.layers import blocks_of
from core.trunk.mmdit import MMDiT
from core.trunk.recompute import recompute
from core.trunk.wan import Wan, WanConfig
from core.types import Context, FeatureLayers, TokenBatch
from tests.core import test_ddt, test_mmdit, test_sit
from tests.core.test_mmdit import CHANNELS, HEADS, B, S, dual_levels, random, two_segments
from tests.tools.tiny import result as result_of
from tests.tools.tiny import train

FEATURES = FeatureLayers(raw=(1,), projected={"teacher": 2})
Arguments = tuple[tuple[torch.Tensor, ...], object, TokenBatch]


def filled(trunk: nn.Module) -> nn.Module:
    """Without zeros, so that every path is felt."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return trunk


def mmdit() -> tuple[nn.Module, Arguments]:
    noisy, batch = two_segments(padded=True)
    return test_mmdit.trunk().float(), (tuple(x.float() for x in noisy), dual_levels(), batch)


def published() -> Arguments:
    noisy, batch = two_segments()
    valid = torch.arange(S) < torch.tensor([[5], [4], [2]])
    context = Context(torch.zeros(B, dtype=torch.bool), tokens=random(B, S, 16), valid=valid)
    return tuple(x.float() for x in noisy), dual_levels(), TokenBatch(batch.segments, context)


def flux2() -> tuple[nn.Module, Arguments]:
    settings = Flux2Settings(width=32, heads=4, double_blocks=2, single_blocks=2, text_rows=S)
    return filled(MMDiT(settings.trunk_config(CHANNELS, 16), projectors=HEADS)), published()


def wan() -> tuple[nn.Module, Arguments]:
    config = WanConfig(width=24, heads=2, depth=3, hidden=32, text_rows=S, channels=CHANNELS, text_width=16)
    return filled(Wan(config, projectors=HEADS)), published()


def sit() -> tuple[nn.Module, Arguments]:
    return test_sit.random_trunk(depth=4, projectors=HEADS), test_sit.example()


def ddt() -> tuple[nn.Module, Arguments]:
    return test_ddt.random_trunk(projectors=HEADS), test_ddt.example()


TRUNKS = {"mmdit": mmdit, "flux2": flux2, "wan": wan, "sit": sit, "ddt": ddt}


def result(trunk: nn.Module, arguments: Arguments, precision: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Velocity, features and all gradients of a loss that reads each of them."""
    trunk.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        output = trunk(*arguments, FEATURES)
        parts = [*output.velocity, *output.raw.values(), *output.projected.values()]
        loss = torch.stack([part.float().square().mean() for part in parts]).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in trunk.named_parameters() if parameter.grad is not None}
    return gradients | {f"output {number}": part.detach() for number, part in enumerate(parts)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", TRUNKS.values(), ids=TRUNKS.keys())
def test_every_trunk_has_the_same_bits(make: Callable[[], tuple[nn.Module, Arguments]], precision):
    trunk, arguments = make()
    plain, calls = result(trunk, arguments, precision), []
    for block in blocks_of(trunk):
        block.register_forward_pre_hook(lambda block, _: calls.append(block))
    blocks = len(blocks_of(trunk))
    assert blocks >= 3
    names = list(trunk.state_dict())
    for every, expected in ((1, 2 * blocks), (2, blocks + blocks // 2), (blocks, blocks + 1), (0, blocks)):
        calls.clear()
        recompute(trunk, every)
        assert same(result(trunk, arguments, precision), plain)
        assert len(calls) == expected  # how often a block ran
    assert list(trunk.state_dict()) == names
    calls.clear()
    recompute(trunk, 1)
    with torch.no_grad():
        trunk(*arguments, FEATURES)
    assert len(calls) == blocks


@pytest.mark.slow
@pytest.mark.parametrize("make", [mmdit, wan, sit, ddt], ids=["mmdit", "wan", "sit", "ddt"])
def test_compiled_blocks_have_the_same_bits(make):
    """Each block traced for forward and backward, as in training. [12] of docs/scale.md. Fails with a wrapper around
    the module, whose names of weights have a prefix."""
    trunk, arguments = make()
    for block in blocks_of(trunk):
        block.compile(backend="aot_eager", fullgraph=True)
    plain = result(trunk, arguments)
    recompute(trunk, 1)
    assert same(result(trunk, arguments), plain)


def test_an_early_stop_and_features_of_every_layer():
    trunk, arguments = mmdit()
    depth = len(blocks_of(trunk))
    wanted = FeatureLayers(raw=tuple(range(1, depth)), stop_after=depth - 1)
    plain = trunk(*arguments, wanted).raw
    recompute(trunk, 1)
    again = trunk(*arguments, wanted).raw
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[layer], again[layer]) for layer in plain)


@pytest.mark.slow
def test_a_run_may_switch_it_on_and_has_the_same_bits(tmp_path):
    for name, every in (("plain", (0, 0)), ("switched", (1, 2))):
        for steps, value in zip((2, 3), every, strict=True):
            settings = (f"training.steps={steps}", f"training.recompute={value}", "streams.video=null")
            assert train(tmp_path / name, *settings, "streams.audio=null") == 0
    assert result_of(tmp_path / "plain") == result_of(tmp_path / "switched")
