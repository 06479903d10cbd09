"""Attention separation (arXiv 2607.02508): tokens attend only to tokens of their own noise level.

Every sample has the same number of tokens at a level (an exact mask), so the tokens are sorted by level once, and
attention runs densely within each run of tokens: no mask, and less work than attention over all of them. Positions
travel with the tokens, and everything else in a trunk acts on each token alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.types import NoiseLevels


@dataclass(frozen=True)
class TokenOrder:
    """The order in which a trunk works on tokens: sorted by level, or the caller's.

    Attributes:
        index: (B, L) level of each token in this order; None when all have the first.
        forward: (B, L), which of the caller's tokens comes where; None when they stay as they are.
        back: (B, L), its inverse.
    """

    index: Tensor | None
    forward: Tensor | None = None
    back: Tensor | None = None

    def sort(self, tokens: Tensor) -> Tensor:
        """(B or 1, L, ...) in the caller's order -> the same in this one, (B, L, ...) if it is another."""
        return tokens if self.forward is None else _pick(tokens, self.forward)

    def restore(self, tokens: Tensor) -> Tensor:
        """(B, L, ...) in this order -> the caller's."""
        return tokens if self.back is None else _pick(tokens, self.back)


def token_order(levels: NoiseLevels) -> TokenOrder:
    """Sorted by level if the levels are to be separated."""
    if levels.separate is None or levels.index is None:  # separate levels have an index
        return TokenOrder(levels.index)
    index, forward = levels.index.sort(dim=1, stable=True)
    return TokenOrder(index, forward, forward.argsort(dim=1))


def _pick(tokens: Tensor, order: Tensor) -> Tensor:
    tokens = tokens.expand(order.shape[0], *tokens.shape[1:])
    place = order.view(*order.shape, *(1,) * (tokens.ndim - 2))
    return tokens.gather(1, place.expand(-1, -1, *tokens.shape[2:]))
