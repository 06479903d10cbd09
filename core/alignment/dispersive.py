"""Dispersive Loss (arXiv 2506.09027): features of different samples are pushed apart; there is no target.

With z_i all features of sample i in one vector of F numbers, and means over all pairs (i, j) of one microbatch on one
device, i = j included, as in the released code (raywang4/DispLoss, transport.py and README):

    infonce_l2      log mean exp(-||z_i - z_j||^2 / (F temperature))
    infonce_cosine  log mean exp(cos(z_i, z_j) / temperature)
    hinge           mean max(0, margin - ||z_i - z_j||^2 / F)^2
    covariance      mean over pairs of features m != n of their squared correlation over the samples

The division by F is the released code's and keeps the exponential from vanishing; the paper's Algorithm 1 leaves it
out. Pairs of different microbatches or devices never meet: the term depends on how a batch is split.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from core.alignment.base import AlignmentInputs
from core.alignment.weights import factor_at, is_over, schedule_problems
from core.errors import choose
from core.types import FeatureLayers, LossTerm


@dataclass
class DispersiveConfig:
    """What all variants have, and `covariance`, which needs nothing else. The defaults are those of the released
    PyTorch code; the paper's own runs have weight and temperature 0.5 and the block at a quarter of the depth (README,
    "Differences from JAX").

    `DispersiveConfig(variant="hinge", margin=2.0)` makes the dataclass of that variant, a row of VARIANTS, and raises
    ConfigError for one that does not exist.

    Attributes:
        weight: factor of the term.
        variant: infonce_l2, infonce_cosine, hinge or covariance.
        layer: 1-based; None means the last block.
        warmup: steps in which the weight rises to its value; 0 for none.
        until: steps for which the term is there; 0 for the whole run.
    """

    weight: float = 0.25
    variant: str = "infonce_l2"
    layer: int | None = None
    warmup: int = 0
    until: int = 0

    def __new__(cls, weight: float = 0.25, variant: str = "infonce_l2", **_settings: Any) -> Self:
        row: Any = choose("variant", variant, VARIANTS) if cls is DispersiveConfig else cls
        return super().__new__(row)

    def problems(self) -> list[str]:
        found = schedule_problems(self)
        if self.weight <= 0:
            found.append(f"weight: {self.weight} must be above 0; set alignment.dispersive: null to leave it out")
        return found

    def depth_problems(self, depth: int) -> list[str]:
        if self.layer is None or 1 <= self.layer <= depth:
            return []
        return [f"layer: {self.layer} must lie in 1..{depth}, the blocks of the trunk"]

    def value(self, z: Tensor, features: Tensor) -> Tensor:
        """The term of z (B, F), float64, of whose columns `features` count and the others are 0.

        Double precision keeps autocast and TF32 out of the Gram matrices, and makes distances from them exact: 0 for
        equal samples, with gradient 0.
        """
        standard = F.normalize(z - z.mean(0), dim=0)
        # The squares of the correlations (F, F) add up to those of the Gram matrix (B, B), which is much smaller.
        squares = (standard @ standard.T).square().sum() - standard.square().sum(0).square().sum()
        return squares / (features * (features - 1))


@dataclass
class InfoNCEConfig(DispersiveConfig):
    """The variant infonce_l2.

    Attributes:
        temperature: of the exponential, above 0.
    """

    temperature: float = 1.0

    def problems(self) -> list[str]:
        own = [] if self.temperature > 0 else [f"temperature: {self.temperature} must be above 0"]
        return super().problems() + own

    def value(self, z: Tensor, features: Tensor) -> Tensor:
        return _log_mean_exp(-_squared_distances(z, features) / self.temperature)


@dataclass
class InfoNCECosineConfig(InfoNCEConfig):
    variant: str = "infonce_cosine"

    def value(self, z: Tensor, features: Tensor) -> Tensor:
        unit = F.normalize(z, dim=1)
        return _log_mean_exp(unit @ unit.T / self.temperature)


@dataclass
class HingeConfig(DispersiveConfig):
    """
    Attributes:
        margin: a squared distance per feature, above 0.
    """

    variant: str = "hinge"
    margin: float = 1.0

    def problems(self) -> list[str]:
        return super().problems() + ([] if self.margin > 0 else [f"margin: {self.margin} must be above 0"])

    def value(self, z: Tensor, features: Tensor) -> Tensor:
        return (self.margin - _squared_distances(z, features)).clamp_min(0).square().mean()


VARIANTS: dict[str, type[DispersiveConfig]] = {
    "infonce_l2": InfoNCEConfig,
    "infonce_cosine": InfoNCECosineConfig,
    "hinge": HingeConfig,
    "covariance": DispersiveConfig,
}


def _squared_distances(z: Tensor, features: Tensor) -> Tensor:
    """(B, F) -> (B, B), per feature. From the Gram matrix: B^2 F numbers would not fit beside a large trunk."""
    gram = z @ z.T
    norms = gram.diagonal()
    return (norms[:, None] + norms - 2 * gram) / features


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.flatten().logsumexp(0) - math.log(values.numel())


class Dispersive:
    """Pushes the samples of a microbatch apart at one layer of the student."""

    teacher_feature_layers, reads_targets = None, False

    def __init__(self, config: DispersiveConfig, depth: int):
        self.config = config
        self.layer = depth if config.layer is None else config.layer

    def feature_layers(self, targets: Collection[str]) -> FeatureLayers:
        return FeatureLayers(raw=(self.layer,))

    def is_over(self, step: int) -> bool:
        return is_over(self.config, step)

    def __call__(self, inputs: AlignmentInputs) -> dict[str, LossTerm]:
        """Of the tokens that count in every sample, since a pair is compared token by token. Weighted like the
        microbatch's tokens, so that the term is the mean over the microbatches of a step."""
        raw = inputs.student.raw[self.layer]  # (B, L, D)
        shared = inputs.loss_mask.all(dim=0)  # (L,)
        z = (raw.double() * shared[:, None]).flatten(1)  # (B, L D)
        features = (shared.sum() * raw.shape[2]).clamp_min(2)
        total = self.config.value(z, features) * inputs.loss_mask.sum()
        return {
            "align/dispersive": LossTerm(
                total.to(torch.promote_types(raw.dtype, torch.float32)),
                inputs.count,
                self.config.weight * factor_at(self.config, inputs.step),
            )
        }
