"""Batches and a trunk with known outputs, for the tests of core.evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from core.keys import generator
from core.trunk.context import ContextConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch, TrunkOutput


class KnownTrunk(nn.Module):
    """velocity = rule(x_t, t per token); layer k of a token = k x_t, widened by its level. It notes its levels."""

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor] = lambda x, t: x):
        super().__init__()
        self.rule = rule
        self.levels: list[NoiseLevels] = []
        self.feature_layers: list[FeatureLayers] = []

    def forward(self, noisy, levels, batch, feature_layers):
        self.levels.append(levels)
        self.feature_layers.append(feature_layers)
        t = levels.per_token(sum(batch.lengths))[..., None]
        parts = t.split(batch.lengths, dim=1)
        early = feature_layers.stop_after is not None
        return TrunkOutput(
            None if early else tuple(self.rule(x, time) for x, time in zip(noisy, parts, strict=True)),
            {k: torch.cat([k * torch.cat(noisy, dim=1), t], dim=-1) for k in feature_layers.raw},
        )


def segment(keys: list[str], modality="image", tokens=6, channels=4, scale=1.0, **masks: Tensor) -> Segment:
    x0 = torch.stack([scale * torch.randn(tokens, channels, generator=generator("x0", modality, k)) for k in keys])
    return Segment(modality, x0, torch.zeros(1, tokens, 3, dtype=torch.long), **masks)


def joined(keys: list[str], *segments: Segment) -> TokenBatch:
    label = torch.tensor([generator("label", k).initial_seed() % 10 for k in keys])
    return TokenBatch(segments, Context(torch.zeros(len(keys), dtype=torch.bool), label=label), tuple(keys))


def tiny_mmdit() -> MMDiT:
    """A real trunk whose every weight is drawn, the gates and heads that start at zero too."""
    context = ContextConfig(kind="labels", num_classes=10)
    trunk = MMDiT(MMDiTConfig(size="tiny", channels={"image": 4}, context=context), seed=1)
    for name, parameter in trunk.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator("tiny", name))
    return trunk.eval()


def batches(count: int, size: int, **options) -> Iterator[TokenBatch]:
    """Samples 0 .. count - 1, the same ones whatever the batch size."""
    for start in range(0, count, size):
        keys = [f"sample{i}" for i in range(start, min(start + size, count))]
        yield joined(keys, segment(keys, **options))
