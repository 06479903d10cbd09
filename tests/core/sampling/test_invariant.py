"""Samples that do not depend on their neighbours: bytes of every trunk over batch sizes, and what products decide."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.keys import generator
from core.sampling import invariant
from core.sampling.invariant import each_sample, is_alike
from core.sampling.sampler import SamplerConfig, initial_noise, sample
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.types import Context, Segment, TokenBatch

SIZES = (1, 3, 8)


def draw(*shape: int, seed: int | str = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("invariant", seed))


def without_zeros(trunk: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.add_(draw(*parameter.shape, seed=name) * 0.1)
    return trunk.eval()


def mmdit() -> nn.Module:
    context = ContextConfig(kind="tokens", vocabulary=30, words=6)
    config = MMDiTConfig("tiny", 48, 2, 1, 2, 2.0, channels={"video": 6, "audio": 5}, context=context)
    return without_zeros(MMDiT(config))


def ddt() -> nn.Module:
    config = DDTConfig("S", 48, 2, 2, 64, 1, 2, grid=4, channels=6, num_classes=11)
    return without_zeros(DDT(config))


def texts(first: int, count: int) -> Context:
    numbers = torch.arange(first, first + count)
    tokens = (numbers[:, None, None] + torch.arange(6)[:, None] * 2 + torch.arange(2)) % 29 + 1
    valid = torch.arange(6) < (numbers % 5 + 2)[:, None]
    return Context(torch.zeros(count, dtype=torch.bool), tokens=tokens, valid=valid)


def audiovisual(first: int, count: int, given: bool) -> TokenBatch:
    """19 and 7 tokens: odd numbers, after which a sample does not start at a multiple of 64 bytes."""
    keys = tuple(str(i) for i in range(first, first + count))
    segments = []
    for name, tokens, channels in (("video", 19, 6), ("audio", 7, 5)):
        x0 = torch.stack([draw(tokens, channels, seed=name + key) for key in keys])
        mask = torch.stack([draw(tokens, seed=name + "given" + key) < -0.5 for key in keys]) if given else None
        ids = torch.arange(tokens)[None, :, None].expand(1, tokens, 3)
        segments.append(Segment(name, x0, ids, conditioning_mask=mask))
    return TokenBatch(tuple(segments), texts(first, count), keys)


def images(first: int, count: int, given: bool) -> TokenBatch:
    keys = tuple(str(i) for i in range(first, first + count))
    ids = torch.tensor([[[0, i // 4, i % 4] for i in range(16)]])
    x0 = torch.stack([draw(16, 6, seed=key) for key in keys])
    mask = torch.stack([draw(16, seed="given" + key) < -0.5 for key in keys]) if given else None
    label = torch.arange(first, first + count) % 10
    segment = Segment("image", x0, ids, conditioning_mask=mask)
    return TokenBatch((segment,), Context(torch.zeros(count, dtype=torch.bool), label), keys)


@pytest.mark.parametrize(
    ("make", "batch_of", "given", "threads"),
    [
        (mmdit, audiovisual, False, 1),
        (mmdit, audiovisual, True, 1),
        (ddt, images, True, 1),
        pytest.param(mmdit, audiovisual, False, 2, marks=pytest.mark.slow),
        pytest.param(mmdit, audiovisual, True, 3, marks=pytest.mark.slow),
        pytest.param(ddt, images, False, 2, marks=pytest.mark.slow),
    ],
)
def test_bytes_of_a_sample_in_batches_of_any_size(make, batch_of, given, threads):
    trunk, before = make(), torch.get_num_threads()
    config = SamplerConfig("heun", 2, cfg_scale=2.0, cfg_interval=[0.0, 0.7], conditioning_noise=0.1)
    torch.set_num_threads(threads)
    try:
        made = []
        for size in SIZES:
            batches = [batch_of(first, min(size, 8 - first), given) for first in range(0, 8, size)]
            runs = [sample(trunk, batch, initial_noise(0, batch), config) for batch in batches]
            made.append([torch.cat(parts).numpy().tobytes() for parts in zip(*runs, strict=True)])
        batch = batch_of(0, 8, given)
        plain = sample(trunk, batch, initial_noise(0, batch), replace(config, batch_invariant=False))
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1] == made[2]
    for part, own in zip(plain, runs[-1], strict=True):  # of the batch of eight
        torch.testing.assert_close(part, own, atol=1e-4, rtol=0)


def test_a_kernel_that_sees_the_batch_is_noticed_and_kept_from_it(monkeypatch):
    """Kernels that round by the number of their rows, as a stand-in for those of some machine."""
    product = F.linear

    def linear(x, weight, bias=None):
        return product(x, weight, bias) * (1 + 1e-6 * x[..., 0].numel())

    is_alike.cache_clear()
    monkeypatch.setattr(F, "linear", linear)
    try:
        layer = nn.Linear(12, 7)
        view, x = each_sample(layer), draw(5, 3, 12)
        assert not is_alike(5, 3, 12, 7, True, x.dtype, torch.get_num_threads())
        alone = torch.cat([view(row) for row in x.split(1)])
        assert torch.equal(view(x), alone)
        assert not torch.equal(layer(x), alone)
    finally:
        is_alike.cache_clear()


@pytest.mark.parametrize("rows", ["all alike", "some alike", "none alike"])
def test_single_rows(rows, monkeypatch):
    """Equal rows share one product."""
    monkeypatch.setattr(invariant, "is_alike", lambda *_: False)
    layer, calls, product = nn.Linear(12, 7), [], F.linear
    monkeypatch.setattr(F, "linear", lambda *arguments: calls.append(len(arguments[0])) or product(*arguments))
    picked = {"all alike": [0] * 6, "some alike": [0, 0, 0, 1, 2, 2], "none alike": [0, 1, 2, 3, 4, 5]}[rows]
    x = draw(6, 1, 12)[picked]
    with torch.no_grad():
        made = each_sample(layer)(x)
    assert calls == [1] * len(set(picked))
    assert made.shape == (6, 1, 7)
    assert torch.equal(made, torch.cat([product(row, layer.weight, layer.bias) for row in x.split(1)]))


def test_the_given_trunk_stays_as_it_is():
    shared = nn.Linear(3, 3)
    trunk = nn.Sequential(shared, nn.Sequential(nn.SiLU(), nn.Linear(3, 2)), shared)
    view = each_sample(trunk)
    assert {type(module) for module in trunk.modules()} == {nn.Sequential, nn.SiLU, nn.Linear}
    assert view.get_submodule("0") is view.get_submodule("2")
    assert view.get_submodule("0") is not shared
    own = dict(trunk.named_parameters())
    assert all(parameter is own[name] for name, parameter in view.named_parameters())
