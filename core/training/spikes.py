"""Loss spikes are contained: a step whose loss or gradient norm stands out of its window does not touch the weights.

What is usual is told by the last steps of the same stream that did, in metrics.jsonl: so a resumed run judges as one
that was never interrupted, and what was left out can never become usual. Both values are compared as logarithms, by
the median and the median distance from it, which a few outliers do not move.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import SpikeError
from core.training.evidence import Share, describe_step, save_batch
from core.training.hooks import attempt
from core.training.loader import Raw

FOLDER = "spikes"  # of a run
JUDGED = ("loss", "grad_norm")
MARK = "spike"  # of its line in metrics.jsonl
_TO_SIGMA = 1.4826  # of a normal distribution, over the median distance from its median
_LEAST_SPREAD = 0.02  # of logarithms: a value that hardly moves makes no spike of 2 %


@dataclass
class SpikesConfig:
    """
    Attributes:
        above: how many standard deviations above the median of its window make a spike; 0 looks for none. 6 is a
            cautious choice.
        window: steps of the same stream that tell what is usual; nothing is judged before half of them are done.
        allowed: spikes among the last `window` steps of a stream; one more stops the run.
    """

    above: float = 0.0
    window: int = 128
    allowed: int = 3

    def problems(self) -> list[str]:
        found = [] if self.above >= 0 else [f"above: {self.above} must not be negative"]
        found += [] if self.window >= 8 else [f"window: {self.window} must be at least 8"]
        return found + ([] if self.allowed >= 0 else [f"allowed: {self.allowed} must not be negative"])


class Spikes:
    """What is usual, from the lines of metrics.jsonl: those of a resumed run first, see `read`.

    Every process of a run has one, and decides by the same metrics of all.
    """

    def __init__(self, config: SpikesConfig):
        self._above, self._window, self._allowed = config.above, config.window, config.allowed
        self._usual: dict[str, deque[tuple[float, ...]]] = {}  # stream -> logarithms of the values that were taken
        self._marks: dict[str, deque[bool]] = {}  # stream -> whether each of the last steps was a spike

    def read(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Take the lines of all steps so far for what is known."""
        self._usual.clear()
        self._marks.clear()
        for entry in entries if self._above else ():
            if all(name in entry for name in JUDGED):  # none of a step that was left out by the settings
                self.add(entry["stream"], entry, MARK in entry)

    def is_spike(self, stream: str, metrics: Mapping[str, Any]) -> bool:
        """Whether a step of finite values stands out."""
        usual = self._usual.get(stream, ())
        if not self._above or len(usual) < self._window // 2:
            return False
        for value, known in zip(_logarithms(metrics), zip(*usual, strict=True), strict=True):
            middle = statistics.median(known)
            spread = max(_LEAST_SPREAD, _TO_SIGMA * statistics.median(abs(one - middle) for one in known))
            if value > middle + self._above * spread:
                return True
        return False

    def add(self, stream: str, metrics: Mapping[str, Any], spike: bool) -> None:
        """Note a step. A spike does not become usual."""
        self._marks.setdefault(stream, deque(maxlen=self._window)).append(spike)
        if not spike:
            self._usual.setdefault(stream, deque(maxlen=self._window)).append(_logarithms(metrics))

    def contain(self, step: int, stream: str, metrics: Mapping[str, Any], run: Path) -> None:
        """Note a step that follows `step` finished ones and is left out as a spike. Raises SpikeError for one more than
        is allowed."""
        met = sum(self._marks.get(stream, ()))
        if met >= self._allowed:
            values = ", ".join(f"{name} {metrics[name]:.4g}" for name in JUDGED)
            raise SpikeError(
                f"step {step + 1} ({stream}) is a spike ({values}), as were {met} of the last {self._window} of "
                f"this stream; training.spikes.allowed is {self._allowed}. The weights were not touched; the "
                f"batches are in {run / FOLDER}",
                step + 1,
            )
        self.add(stream, metrics, spike=True)


def _logarithms(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(math.log(max(metrics[name], 1e-30)) for name in JUDGED)


def save_spike(
    run: Path, rank: int, step: int, microbatches: Sequence[Raw], metrics: Mapping[str, Any], ranks: Sequence[Share]
) -> None:
    """RUN/spikes/step-N.json, written by rank 0, and the tensors of each process. A failure is only reported."""
    folder, name = run / FOLDER, f"step-{step + 1:08d}"

    def write() -> None:
        save_batch(folder, f"{name}-rank-{rank}", microbatches)
        if rank == 0:
            content = describe_step(step, microbatches[0].stream, metrics, ranks)
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    attempt(f"saving the batch of the spike at step {step + 1}", write)
