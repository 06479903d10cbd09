"""Hidden features of chosen blocks on held-out samples, for probes, distances and health."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from core.errors import DataError, choose
from core.evaluation.inputs import noisy_inputs
from core.types import FeatureLayers, TokenBatch


def _mean(features: Tensor, loss_mask: Tensor) -> Tensor:
    """(B, L, D) -> (B, D), over counted tokens."""
    if not loss_mask.any(dim=1).all():
        raise DataError("block_features: a sample has no token in the loss mask to take the mean over")
    share = loss_mask / loss_mask.sum(dim=1, keepdim=True)  # (B, L)
    return torch.einsum("bl,bld->bd", share.to(features.dtype), features)


def _tokens(features: Tensor, loss_mask: Tensor) -> Tensor:
    """(B, L, D) -> (counted tokens, D), sample after sample."""
    return features[loss_mask]


_POOLS = {"mean": _mean, "none": _tokens}


@torch.no_grad()
def block_features(
    trunk: nn.Module,
    batches: Iterable[TokenBatch],
    layers: Sequence[int],
    timestep: float,
    seed: int,
    pool: str | None = "mean",
) -> dict[int, Tensor]:
    """{layer: (n, D)} float32 on the CPU, every token of a sample at level `timestep`.

    Noise is keyed by (seed, sample key), so rows do not depend on the batch size. The trunk stops after the last layer
    that is wanted.

    Args:
        trunk: called as trunk(noisy, levels, batch, feature_layers); in eval mode, on the batches' device.
        layers: 1-based.
        timestep: in [0, 1], 0 is data. Features for classification are usually best at a small level, not at 0.
        pool: mean (one row per sample, over the tokens that enter the loss), or none (one row for each such token).

    Raises:
        ConfigError: an unknown pool.
        DataError: no layers, no batches, a timestep outside [0, 1], or a sample without a counted token under mean.
    """
    if not layers:
        raise DataError("block_features: no layers asked for")
    reduce = choose("pool", "none" if pool is None else pool, _POOLS)
    feature_layers = FeatureLayers(raw=tuple(layers), stop_after=max(layers))
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in batches:
        noisy, _, levels = noisy_inputs(batch, timestep, seed)
        raw = trunk(noisy, levels, batch, feature_layers).raw
        loss_mask = batch.loss_mask()
        for layer in rows:
            rows[layer].append(reduce(raw[layer].float(), loss_mask).cpu())
    if not rows[layers[0]]:
        raise DataError("block_features: no batches")
    return {layer: torch.cat(parts) for layer, parts in rows.items()}
