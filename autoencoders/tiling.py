"""A network run over overlapping tiles of its input, whose results are blended: memory of one tile for any size.

What a convolution sees beyond the border of a tile is zeros instead of the neighboring pixels, so the cells next to
such a border are wrong. A quarter of the overlap is therefore thrown away at each of the two borders in it, and the
two tiles are blended into each other across the half that is left. The result equals that of the whole as far as the
network's reach is no more than a quarter of the overlap (to the rounding of the blend); a network that takes
statistics of, or attends to, the whole of its input sees a tile of it, and its result is approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """How one axis is cut into tiles. A cell is what both sides of the network count in: one latent.

    Attributes:
        cells: of the whole axis, more than `tile`.
        tile: cells of a tile, more than `overlap`.
        overlap: cells that neighbors share at least; the tiles are spread evenly.
        source: dimension of the network's input, and its units (pixels, samples or latents) per cell.
        target: the same of its output.
    """

    cells: int
    tile: int
    overlap: int
    source: tuple[int, int]
    target: tuple[int, int]

    def starts(self) -> list[int]:
        """First cell of every tile."""
        steps = ceil((self.cells - self.tile) / (self.tile - self.overlap))
        return [(self.cells - self.tile) * step // steps for step in range(steps + 1)]

    def weights(self) -> list[Tensor]:
        """Weights of every tile along the axis of the output, (tile x units,) float32 each, that sum to 1."""
        starts, (_, unit) = self.starts(), self.target
        margin, ramp = self.overlap * unit / 4, self.overlap * unit / 2
        place = torch.arange(self.tile * unit, dtype=torch.float64) + 0.5
        rise = ((place - margin) / ramp).clamp(0, 1)
        total, raw = torch.zeros(self.cells * unit, dtype=torch.float64), []
        for start in starts:
            weight = torch.ones_like(rise)
            if start > 0:
                weight = weight * rise
            if start + self.tile < self.cells:
                weight = weight * rise.flip(0)
            total[start * unit : (start + self.tile) * unit] += weight
            raw.append(weight)
        return [
            (weight / total[start * unit : (start + self.tile) * unit]).float()
            for start, weight in zip(starts, raw, strict=True)
        ]


def tiled(function: Callable[[Tensor], Tensor], source: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """function(source), computed tile by tile; without cuts it is just that.

    Args:
        function: acts on a tile of `source` as on the whole; the axes of its result lie where `cuts` say.
        source: any tensor. It and the result lie on one device, however the function moves its tile.
        cuts: the axes to cut; all others are whole.
    """
    if not cuts:
        return function(source)
    result: Tensor | None = None
    tiles = [list(zip(cut.starts(), cut.weights(), strict=True)) for cut in cuts]
    for chosen in product(*tiles):
        part = source
        for cut, (start, _) in zip(cuts, chosen, strict=True):
            dimension, unit = cut.source
            part = part.narrow(dimension, start * unit, cut.tile * unit)
        part = function(part)
        if result is None:
            shape = list(part.shape)
            for cut in cuts:
                dimension, unit = cut.target
                shape[dimension] = cut.cells * unit
            result = part.new_zeros(shape)
        place = result
        for cut, (start, weight) in zip(cuts, chosen, strict=True):
            dimension, unit = cut.target
            part = part * weight.to(part).reshape(-1, *[1] * (part.ndim - 1 - dimension % part.ndim))
            place = place.narrow(dimension, start * unit, cut.tile * unit)
        place += part
    assert result is not None  # every cut has tiles
    return result
