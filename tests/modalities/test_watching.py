"""What samples will become: expected data from two states of a solver."""

from __future__ import annotations

import torch

from core.sampling.config import SamplerConfig
from core.sampling.parts import PartSampling
from modalities.watching import Expectation


def states(x0: torch.Tensor, x1: torch.Tensor, levels: list[float]) -> list[torch.Tensor]:
    """On the straight path."""
    return [x0 * (1 - t) + x1 * t for t in levels]


def test_on_a_straight_path_the_data_are_known_after_every_step():
    x0, x1 = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(steps=4, shift=3.0)
    told = []
    watch = Expectation(config, ["image"], (x1,), lambda expected: told.append(expected()["image"]))
    for step, state in enumerate(states(x0, x1, config.timesteps())[1:], 1):
        watch(step, (state,))
    assert len(told) == 4
    for expected in told:
        torch.testing.assert_close(expected, x0, rtol=1e-5, atol=1e-5)


def test_absent_and_omitted_parts_have_none_and_one_that_waits_is_as_it_is():
    parts = {"a": PartSampling(omit=True), "b": PartSampling(absent=True), "d": PartSampling(after="c")}
    x0, x1 = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    told = []
    config = SamplerConfig(steps=2, parts=parts)
    watch = Expectation(config, ["a", "b", "c", "d"], (x1,) * 4, lambda expected: told.append(expected()))
    watch(1, (x1, 0.5 * x1, x1))  # b, c and d; c went from 1 to 0.5, d waits
    assert list(told[0]) == ["c", "d"]
    assert torch.equal(told[0]["c"], x0)
    assert torch.equal(told[0]["d"], x1)


def test_the_states_of_an_sde_are_shown_as_they_are():
    noise, state = torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.7)
    told = []
    Expectation(SamplerConfig("sde", steps=4), ["x"], (noise,), lambda expected: told.append(expected()["x"]))(
        1, (state,)
    )
    assert torch.equal(told[0], state)
