"""How fast samples come from a run's data: per stream and number of workers, and what a sample's time is spent on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.assembly import Assembly
from configs.schema import Config
from core.training.mixing import StreamMix
from modalities.base import Windows
from modalities.data.loader import StepDataset, StepLoader
from tools.bench.measure import Row, Times, median_row

STAGES = {
    "read": "a record, read",
    "load": "its media, decoded and resized or resampled",
    "draw": "its caption, times, mask and noise",
    "collate": "its tokens, and the batch",
}
SAMPLES = 50  # of which the stages are timed, one by one
WARMUP = 2  # microbatches of every number of workers that do not count: workers start, caches fill


def data_rows(config: Config, root: Path, workers: list[int], seconds: float, rounds: int) -> list[Row]:
    """Rows `data NAME` for every stream of a configuration; nothing is trained and no autoencoder with weights runs.

    Args:
        root: what relative paths start from.
        workers: numbers of loader processes.
        seconds: how long each of them is watched in a round.
    """
    dataset = Assembly(config, root).dataset
    rows = []
    for name in dataset.streams:
        alone = only(dataset, name)
        section = f"data {name}"
        rows += stage_rows(section, alone, name)
        for count in workers:
            what = "in this process" if count == 0 else f"{count} worker{'s' * (count > 1)}"
            rates = [samples_per_second(alone, count, seconds) for _ in range(rounds)]
            rows.append(median_row(section, what, rates, "samples/s", {}))
    return rows


def only(dataset: StepDataset, name: str) -> StepDataset:
    """The same data with steps of one stream alone."""
    mix = StreamMix(dataset.seed, {name: 1.0}, {name: dataset.mix.global_batch[name]})
    settings = (dataset.noising, dataset.conditions, dataset.accumulate)
    return StepDataset(dataset.seed, mix, {name: dataset.streams[name]}, *settings)


def samples_per_second(dataset: StepDataset, workers: int, seconds: float) -> float:
    """Samples that a StepLoader hands over in a second, once it runs; at least one microbatch is counted."""
    count, started = 0, 0.0
    steps = StepLoader(dataset, workers).steps(0, 2**40)
    for step, microbatches in steps:
        if step == WARMUP - 1:
            started = time.perf_counter()
        elif step >= WARMUP:
            count += sum(len(microbatch.keys) for microbatch in microbatches)
            if time.perf_counter() - started > seconds:
                break
    elapsed = time.perf_counter() - started
    steps.close()
    return count / elapsed


def stage_rows(section: str, dataset: StepDataset, name: str) -> list[Row]:
    """Milliseconds of a sample in this process, by what they are spent on. Unusable records are stepped over."""
    stream = dataset.streams[name]
    source, parts = Timed(stream.source, "read"), {}
    for part_name, part in stream.parts.items():
        parts[part_name] = replace(part, adapter=Timed(part.adapter, "load", "windows"))
    dataset.streams[name] = replace(stream, source=source, parts=parts)
    adapters = [part.adapter for part in parts.values()]
    times: Times = {stage: [] for stage in STAGES}
    for position in range(SAMPLES):
        for timed in (source, *adapters):
            timed.seconds = 0.0
        started = time.perf_counter()
        sample = dataset.sample(name, position, [])
        drawn = time.perf_counter()
        dataset.collate(name, [sample], ())
        times["read"].append(source.seconds)
        loading = sum(adapter.seconds for adapter in adapters)
        times["load"].append(loading)
        times["draw"].append(drawn - started - source.seconds - loading)
        times["collate"].append(time.perf_counter() - drawn)
    dataset.streams[name] = stream
    return [
        median_row(section, what, [1000 * spent for spent in times[stage]], "ms", {stage: times[stage]})
        for stage, what in STAGES.items()
    ]


class Timed:
    """Another object, of which the time inside some methods is summed in `seconds`; of windows also that of loading."""

    def __init__(self, inner: Any, *methods: str):
        self._inner, self._methods, self.seconds = inner, methods, 0.0

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str):
        found = getattr(self._inner, name)
        return self._timed(found) if name in self._methods else found

    def _timed(self, function: Callable) -> Callable:
        def timed(*arguments):
            started = time.perf_counter()
            try:
                found = function(*arguments)
            finally:
                self.seconds += time.perf_counter() - started
            return replace(found, load=self._timed(found.load)) if isinstance(found, Windows) else found

        return timed
