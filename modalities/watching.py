"""What samples will most likely become, while they are sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.flow import data_from_velocity
from core.sampling.config import SamplerConfig, SDEConfig
from core.sampling.plan import level_schedule

# Name of a part -> (B, N, C) tokens.
Tokens = dict[str, Tensor]


class Expectation:
    """The expected data of a batch after each step, from two states in a row; no evaluation of the trunk is added.

    The states of an ODE solver give its mean velocity over a step, so that x0 = x - t v. Those of an SDE differ by
    noise as well, and are returned as they are.

    Args:
        names: of all parts, in their order.
        noise: (B, N, C) of each, the state before the first step.
        told: called after every step with a function that returns the expected tokens of the parts that are sampled.
    """

    def __init__(
        self,
        config: SamplerConfig,
        names: list[str],
        noise: tuple[Tensor, ...],
        told: Callable[[Callable[[], Tokens]], object],
    ):
        omitted = {name for name, part in config.parts.items() if part.omit}
        self.made = [name for name in names if name not in config.parts or config.parts[name].sampled]
        self.kept = [name for name in names if name not in omitted]
        self.levels = [dict(zip(names, row, strict=True)) for row in level_schedule(config, names).rows]
        self.state = {name: part for name, part in zip(names, noise, strict=True) if name not in omitted}
        self.random, self.told = isinstance(config, SDEConfig), told

    def __call__(self, step: int, state: tuple[Tensor, ...]) -> None:
        """Args: those of `progress` in `core.sampling.sampler.sample`."""
        before, after = self.state, dict(zip(self.kept, state, strict=True))
        self.state = after
        self.told(lambda: {name: self._expected(name, step, before[name], after[name]) for name in self.made})

    def _expected(self, name: str, step: int, before: Tensor, after: Tensor) -> Tensor:
        high, low = self.levels[step - 1][name], self.levels[step][name]
        if self.random or low == 0 or high == low:
            return after
        level = torch.full((1, 1), low, dtype=after.dtype, device=after.device)
        return data_from_velocity(after, (before - after) / (high - low), level)
