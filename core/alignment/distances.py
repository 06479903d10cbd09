"""Distances of two features (B, L, D), summed over the tokens of the loss mask, in float32: half precision overflows.

Each maps (prediction, target, loss_mask (B, L) bool) to a scalar, the sum over the tokens of a distance whose mean over
the channels is one token's.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from core.errors import nearest

SMOOTH_L1_BETA = 0.05  # of SRA (vvvvvjdy/SRA, SiT-SRA/loss.py)


def _cosine(a: Tensor, b: Tensor, loss_mask: Tensor) -> Tensor:
    return ((1 - F.cosine_similarity(a, b, dim=-1)) * loss_mask).sum()


def _l1(a: Tensor, b: Tensor, loss_mask: Tensor) -> Tensor:
    return ((a - b).abs().mean(-1) * loss_mask).sum()


def _l2(a: Tensor, b: Tensor, loss_mask: Tensor) -> Tensor:
    return ((a - b).square().mean(-1) * loss_mask).sum()


def _smooth_l1(a: Tensor, b: Tensor, loss_mask: Tensor) -> Tensor:
    return (F.smooth_l1_loss(a, b, beta=SMOOTH_L1_BETA, reduction="none").mean(-1) * loss_mask).sum()


def _cosine_over_tokens(a: Tensor, b: Tensor, loss_mask: Tensor) -> Tensor:
    inputs = loss_mask[..., None]
    distance = 1 - F.cosine_similarity(a * inputs, b * inputs, dim=1)  # (B, L, D) -> (B, D)
    return (distance.mean(-1) * loss_mask.sum(1)).sum()


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "l1": _l1,
    "l2": _l2,
    "smooth_l1": _smooth_l1,
    # One cosine per channel, over the tokens: what the released code of SRA computes (docs/fidelity.md).
    "cosine_over_tokens": _cosine_over_tokens,
}


def distance_problems(name: str) -> list[str]:
    if name in DISTANCES:
        return []
    return [f"similarity: {name!r} is not one of {', '.join(DISTANCES)}.{nearest(name, DISTANCES)}"]
