"""Trunks whose velocity is a formula, for tests of the sampler."""

import torch
from torch import nn

from core.types import Context, Segment, TokenBatch, TrunkOutput


class Field(nn.Module):
    """A trunk whose velocity is a given function of (x, levels per token, dropped); it notes its calls."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.calls = velocity, []

    def forward(self, noisy, levels, batch):
        self.calls.append((noisy, levels, batch))
        t = levels.per_token(sum(batch.lengths)).split(batch.lengths, dim=1)
        dropped = batch.context.dropped[:, None, None]
        return TrunkOutput(tuple(self.velocity(x, s[..., None], dropped) for x, s in zip(noisy, t, strict=True)))


def batch_of(samples, tokens, channels, conditioning_mask=None, dtype=torch.float64, modality="image"):
    ids = torch.zeros(1, tokens, 3, dtype=torch.long)
    segment = Segment(
        modality, torch.zeros(samples, tokens, channels, dtype=dtype), ids, conditioning_mask=conditioning_mask
    )
    return TokenBatch((segment,), Context(torch.zeros(samples, dtype=torch.bool)), tuple(map(str, range(samples))))


def to_point(point):
    """E[v | x_t] when all data is one point: (x - point) / t; at t = 0 any finite value will do."""
    return lambda x, t, dropped: (x - point) / t.clamp_min(1e-12)


def gaussian(mean, deviation):
    """E[x1 - x0 | x_t] for data N(mean, deviation^2): a linear regression on x_t."""

    def velocity(x, t, dropped):
        variance = (1 - t) ** 2 * deviation**2 + t**2
        return -mean + (t - (1 - t) * deviation**2) / variance * (x - (1 - t) * mean)

    return velocity
