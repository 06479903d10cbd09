"""Dispersive Loss (arXiv 2506.09027): features of different samples are pushed apart; there is no target.

Pairs are those of one microbatch on one device, as in the released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.alignment.base import Seen
from core.types import LossTerm, Taps


@dataclass
class DispersiveConfig:
    """
    Attributes:
        weight: factor of the term (0.25 in the released code, 0.5 in the paper).
        variant: infonce_l2, infonce_cosine, hinge or covariance (the paper's table of variants).
        layer: 1-based; None means the last block, as the released code has it. The paper also tries others.
        temperature: of the two InfoNCE variants; distances are per channel, so 1 is the released code's.
        margin: of hinge, in the same unit.
    """

    weight: float = 0.25
    variant: str = "infonce_l2"
    layer: int | None = None
    temperature: float = 1.0
    margin: float = 1.0

    def problems(self) -> list[str]:
        found = []
        if self.variant not in VARIANTS:
            found.append(f"variant: {self.variant!r} is not one of {', '.join(VARIANTS)}")
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; set alignment.dispersive: null to leave it out")
        for name, readers in {"temperature": ("infonce_l2", "infonce_cosine"), "margin": ("hinge",)}.items():
            value = getattr(self, name)
            if value <= 0:
                found.append(f"{name}: {value} must be above 0")
            elif value != 1.0 and self.variant not in readers:
                found.append(f"{name}: {value} is not read by variant {self.variant!r}; only by {', '.join(readers)}")
        return found

    def depth_problems(self, depth: int) -> list[str]:
        if self.layer is None or 1 <= self.layer <= depth:
            return []
        return [f"layer: {self.layer} must lie in 1..{depth}, the blocks of the trunk"]


def _squared_distances(z: Tensor) -> Tensor:
    """(B, F) -> (B, B) squared distances over the number of features, exactly 0 on the diagonal."""
    difference = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    return difference.square() / z.shape[1]


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.flatten().logsumexp(0) - math.log(values.numel())


def _infonce_l2(z: Tensor, config: DispersiveConfig) -> Tensor:
    return _log_mean_exp(-_squared_distances(z) / config.temperature)


def _infonce_cosine(z: Tensor, config: DispersiveConfig) -> Tensor:
    unit = F.normalize(z, dim=1)
    return _log_mean_exp(unit @ unit.T / config.temperature)


def _hinge(z: Tensor, config: DispersiveConfig) -> Tensor:
    return (config.margin - _squared_distances(z)).clamp_min(0).square().mean()


def _covariance(z: Tensor, config: DispersiveConfig) -> Tensor:
    centred = F.normalize(z, dim=1)
    centred = centred - centred.mean(0)
    # The sum of squares of the covariance (F, F) is that of the Gram matrix (B, B), which is much smaller.
    gram = centred @ centred.T / (z.shape[0] - 1)
    diagonal = centred.square().sum(0) / (z.shape[0] - 1)
    return gram.square().sum() - diagonal.square().sum()


VARIANTS: dict[str, Callable[[Tensor, DispersiveConfig], Tensor]] = {
    "infonce_l2": _infonce_l2,
    "infonce_cosine": _infonce_cosine,
    "hinge": _hinge,
    "covariance": _covariance,
}


class Dispersive:
    teacher_taps = None

    def __init__(self, config: DispersiveConfig, depth: int):
        self.config, self.variant = config, VARIANTS[config.variant]
        self.layer = depth if config.layer is None else config.layer

    def taps(self, targets: Collection[str]) -> Taps:
        return Taps(raw=(self.layer,))

    def __call__(self, seen: Seen) -> dict[str, LossTerm]:
        """Features of all counted tokens of a sample are one vector. Weighted like the tokens they came from."""
        z = (seen.student.raw[self.layer].float() * seen.counted[..., None]).flatten(1)  # (B, L, D) -> (B, L D)
        total = self.variant(z, self.config) * seen.counted.sum()
        return {"align/dispersive": LossTerm(total, seen.count, self.config.weight)}
