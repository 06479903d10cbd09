"""Held-out velocity loss on a fixed grid of timesteps.

Training loss is noisy, averages over p(t) and is not comparable between methods whose noising differs. This one has
every held-out sample at the same timesteps with the same noise, under vanilla inference (one level for all tokens), for
every model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from core.errors import DataError
from core.evaluation.inputs import noisy_inputs
from core.flow import velocity
from core.types import FeatureLayers, TokenBatch


@dataclass(frozen=True)
class VelocityCurve:
    """
    Attributes:
        timesteps: the grid, in the order it was given.
        losses: name of the segment -> mean squared velocity error at each timestep, over all counted tokens.
        tokens: name of the segment -> number of counted tokens.
    """

    timesteps: tuple[float, ...]
    losses: dict[str, tuple[float, ...]]
    tokens: dict[str, int]

    def mean(self, name: str) -> float:
        """The held-out loss: the plain mean over the grid."""
        return sum(self.losses[name]) / len(self.timesteps)


@torch.no_grad()
def velocity_loss_curve(
    trunk: nn.Module, batches: Iterable[TokenBatch], timesteps: Sequence[float], seed: int
) -> VelocityCurve:
    """Mean squared error of the predicted velocity per element, as in the objective, at every timestep of the grid.

    Noise is keyed by (seed, sample key, timestep index): a sample meets the same noise in a batch of any size and under
    any model. Conditions are used as the batch has them, dropped ones included.

    Args:
        trunk: called as trunk(noisy, levels, batch, feature_layers); in eval mode, on the batches' device.
        timesteps: in [0, 1]; 0 is data.

    Raises:
        DataError: no timestep, one outside [0, 1], or no counted token in any batch. A segment without one is left out.
    """
    if not timesteps:
        raise DataError("velocity_loss_curve: the grid of timesteps is empty")
    totals: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    for batch in batches:
        for segment in batch.segments:
            totals.setdefault(segment.name, [0.0] * len(timesteps))
            tokens[segment.name] = tokens.get(segment.name, 0) + int(segment.loss_mask().sum())
        for index, timestep in enumerate(timesteps):
            noisy, noise, levels = noisy_inputs(batch, timestep, seed, index)
            predicted = trunk(noisy, levels, batch, FeatureLayers()).velocity
            for segment, x1, v in zip(batch.segments, noise, predicted, strict=True):
                error = (v.float() - velocity(segment.x0, x1)).square().mean(-1)  # (B, N, C) -> (B, N)
                totals[segment.name][index] += float(error[segment.loss_mask()].double().sum())
    tokens = {name: count for name, count in tokens.items() if count}
    if not tokens:
        raise DataError(
            f"velocity_loss_curve: no tokens in the loss masks of the batches: {', '.join(totals) or 'none'}"
        )
    losses = {name: tuple(total / count for total in totals[name]) for name, count in tokens.items()}
    return VelocityCurve(tuple(timesteps), losses, tokens)
