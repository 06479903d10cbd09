"""Parts of one record that pass in time, cut at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core.errors import DataError
from modalities.base import Record, TimedAdapter, Windows
from modalities.data.decoding import finite, guarded
from modalities.media.opening import WindowError

STARTS = 8  # tried before a record is given up


def load_together(
    adapters: Mapping[str, TimedAdapter],
    records: Mapping[str, Record],
    starts: torch.Generator,
    draw: Callable[[], torch.Generator],
) -> dict[str, Tensor]:
    """Media of every part, not augmented, of one window in time. Where it is silent or damaged another one is drawn.

    Args:
        records: what each part is read from.
        starts: draws the place in time.
        draw: makes the generator for the rest of a part's randomness.

    Raises DataError as `decoding.decoded`.
    """
    windows: dict[str, Windows] = {}
    for name, adapter in adapters.items():
        with guarded(records[name].origin):
            windows[name] = adapter.windows(records[name])
    origin = next(iter(records.values())).origin
    first, last = common_starts(windows, origin)
    unfit, tries = "", STARTS if last > first else 1
    for _ in range(tries):
        start = first + (last - first) * torch.rand((), generator=starts, dtype=torch.float64).item()
        found = {}
        try:
            for name, window in windows.items():
                with guarded(records[name].origin):
                    found[name] = finite(window.load(start, draw()), records[name].origin)
        except WindowError as error:
            unfit = unfit or str(error)  # not the error, which holds an open decoder
            continue
        return found
    raise DataError(unfit if tries == 1 else f"{unfit} (windows tried: {tries})")


def common_starts(windows: Mapping[str, Windows], origin: str) -> tuple[float, float]:
    """The first and the last start, in seconds, at which all parts have a whole window.

    Where there is none, the one at which the most is there: parts that cannot be filled up come first, then the longest
    one; where all are shorter than a window, it begins with the first. Raises DataError where two parts that cannot be
    filled up have no window in common.
    """
    first = max(window.first for window in windows.values())
    last = min(window.last for window in windows.values())
    if first <= last:
        return first, last
    whole = [window for window in windows.values() if window.first <= window.last]
    if not whole:
        start = min(window.first for window in windows.values())
        return start, start
    rest = [window for window in whole if not window.fills]
    rest = rest or [max(whole, key=lambda window: window.last - window.first)]
    low, high = max(window.first for window in rest), min(window.last for window in rest)
    if low > high:
        raise DataError(f"{origin}: {' and '.join(windows)} have no window in common")
    start = min(max(first, low), high)
    return start, start
