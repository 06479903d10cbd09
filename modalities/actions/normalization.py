"""Physical vectors to those that a network sees, and back, from the statistics of a data set.

Clipping is a part of the normalization and so happens in one place, on the way in; nothing is clipped on the way back.
Zero in normalized units is the middle of the range and not standing still: for that there is `no_action`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autoencoders.base import LatentNormalization
from core.errors import ConfigError
from modalities.actions.statistics import Statistics

# The range between two quantiles is taken for degenerate below this share of the whole range: the number nearly always
# has one value, and the rare others would be blown up.
DEGENERATE = 1e-3

# mode -> the ends of [-1, 1]; none: mean 0 and deviation 1, nothing clipped
MODES: Mapping[str, tuple[str, ...]] = {"quantiles": ("q01", "q99"), "min_max": ("min", "max"), "mean_std": ()}


def vector_normalization(
    statistics: Statistics, mode: str = "quantiles", keep: Sequence[int] = (), where: str = "statistics"
) -> LatentNormalization:
    """Shift, scale and clipping of every number of a vector.

    A number without a useful range between its quantiles is scaled by its minimum and maximum; one that never changes
    becomes 0, and comes back as its constant.

    Args:
        mode: quantiles (q01 and q99 to -1 and 1, clipped; the paper's App. E, with the range that CogACT and OpenVLA
            use), min_max, or mean_std.
        keep: places of numbers that stay as they are, such as the gripper's (paper App. E).
        where: of the statistics, for messages.

    Raises ConfigError for statistics that lack what the mode reads.
    """
    needed = (*(MODES[mode] or ("mean", "std")), "min", "max")
    if missing := [name for name in needed if name not in statistics.values]:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}, which normalize: {mode!r} reads; `selfflow stats` measures all"
        )
    least, most = statistics.values["min"], statistics.values["max"]
    if MODES[mode]:
        low, high = (statistics.values[name].copy() for name in MODES[mode])
        narrow = high - low <= DEGENERATE * (most - least)
        low[narrow], high[narrow] = least[narrow], most[narrow]
        middle, scale = (low + high) / 2, (high - low) / 2
    else:
        low, high = np.full_like(least, -np.inf), np.full_like(least, np.inf)
        middle, scale = statistics.values["mean"].copy(), statistics.values["std"].copy()
    constant = most - least <= 1e-7 * np.maximum(np.abs(most), np.abs(least))  # float32 tells them apart no more
    middle[constant] = low[constant] = high[constant] = least[constant]
    scale[constant] = 1.0
    for place in keep:
        middle[place], scale[place], low[place], high[place] = 0.0, 1.0, -np.inf, np.inf
    ends = (torch.tensor(values, dtype=torch.float32) for values in (middle, scale, low, high))
    return LatentNormalization(*ends, digest=statistics.digest)


def no_action(normalization: LatentNormalization, physical: Tensor | None = None) -> Tensor:
    """(C,) normalized vector that stands still.

    Args:
        physical: (C,) what standing still is for this robot, such as its present pose where actions are absolute; None
            is 0, which it is for relative actions. Beyond the clipping range it is the nearest that can be said.
    """
    return normalization.normalize(torch.zeros_like(normalization.mean) if physical is None else physical)
