"""Measuring: times side by side, peak memory, floating-point operations."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Times = dict[str, list[float]]  # side -> seconds of every round


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        section, what: where it belongs, and what was measured.
        value, unit: the median of the rounds, or a single reading.
        low, high: smallest and largest of the rounds; None for a single reading.
        times: seconds of every round of every side that the value was computed from.
    """

    section: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    times: Times = field(default_factory=dict)


def median_row(section: str, what: str, values: Sequence[float], unit: str, times: Times) -> Row:
    """The median of one value per round, with its range."""
    return Row(section, what, statistics.median(values), unit, min(values), max(values), times)


def ratio_row(section: str, what: str, times: Times, over: str, under: str) -> Row:
    """Seconds of `over` by seconds of `under`, pair by pair: two sides of a round share the state of the machine."""
    pairs = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return median_row(section, what, pairs, "x", {name: times[name] for name in (over, under)})


def rate_row(section: str, what: str, times: Times, side: str, amount: float, unit: str) -> Row:
    """`amount` per second."""
    return median_row(section, what, [amount / seconds for seconds in times[side]], unit, {side: times[side]})


def side_by_side(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds of every side, interleaved A B C A B C ...; the first `warmup` rounds are run and not counted."""
    times: Times = {name: [] for name in sides}
    for number in range(warmup + rounds):
        for name, side in sides.items():
            _wait(device)
            started = clock()
            side()
            _wait(device)
            if number >= warmup:
                times[name].append(clock() - started)
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_own_process(function: Callable, *arguments):
    """The result of a module-level function, run in a fresh process: peaks of memory cannot be reset in a used one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(device: str) -> int:
    """Bytes: on cuda of tensors since `forget_peak`; else the largest resident size of this process so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a Linux process starts at the peak of the process that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matrix_peak(device: str, precision: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """TFLOP/s of the fastest product of large square matrices, what everything else is a share of."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for side in (1024, 1536, 2048) if device == "cpu" else (4096, 8192):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = side_by_side({"product": lambda left=left, right=right: left @ right}, 5, 1, device, clock)["product"]
        best = max(best, 2 * side**3 / min(seconds) / 1e12)
    return best


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def count_flops(function: Callable[[], object]) -> int:
    """Matrix products and attention inside `function`, two operations per multiply-add.

    Attention runs as two plain matrix products meanwhile, 4 B T^2 D a layer, whatever kernel the device would choose.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        function()
    return counter.get_total_flops()
