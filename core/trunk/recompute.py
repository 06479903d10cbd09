"""Blocks whose inside is not kept for the backward pass, which computes it once more.

A function around the call, not a wrapper around the module: names of weights stay as they are. It goes around blocks
that are compiled and sharded; FSDP gathers their weights for the backward pass in any case.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.trunk.layers import blocks_of

MARK = "recompute"


def recompute(trunk: nn.Module, every: int) -> None:
    """Compute the last of every `every` blocks of a trunk again in the backward pass: 1 for all of them, 0 for none.

    What those blocks take in and give out is still kept, and features can be tapped after any of them.
    """
    for number, block in enumerate(blocks_of(trunk), start=1):
        setattr(block, MARK, every > 0 and number % every == 0)


def is_recomputed(block: nn.Module) -> bool:
    return getattr(block, MARK, False)


def run_block(block: nn.Module, *arguments: Any) -> Any:
    """The output of a block of a trunk."""
    if is_recomputed(block) and torch.is_grad_enabled():
        # Nothing in a block is random, so there is no state to bring back.
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
    return block(*arguments)
