"""Samples of a run on several devices of this machine: each process loads the run and makes every n-th of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from configs.runs import LoadedRun
from core.parallel import in_order, spread
from core.sampling.sampler import SamplerConfig
from modalities.base import Known
from modalities.conditioning.conditions import Prompt
from modalities.generation import Watch, generate, sampler_steps


def generate_on(
    devices: int,
    loaded: LoadedRun,
    stream: str,
    prompts: Sequence[str | Prompt],
    config: SamplerConfig,
    seed: int,
    known: Mapping[str, Known] | None = None,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
    negative: str | None = None,
    watch: Watch | None = None,
) -> Iterator[dict[str, Tensor]]:
    """What `modalities.generation.generate` gives, in the same order, made by one process for each device.

    Args:
        devices: 1 makes the samples in this process.
        progress: called with the steps that are done; of several devices, with all steps of a sample at its end.
        watch: of one device alone.
    """
    if min(devices, len(prompts)) == 1:
        model = loaded.generator
        yield from generate(model, stream, prompts, config, seed, known, batch_size, progress, negative, watch)
        return
    assert loaded.again is not None  # of `load_run`
    items, steps = range(len(prompts)), sampler_steps(loaded.generator.parts[stream], config)
    work = partial(_share, loaded.again, stream, prompts, config, seed, known, batch_size, negative)
    for media in in_order(spread(work, items, devices), items):
        if progress is not None:
            progress(steps)
        yield {name: torch.from_numpy(array) for name, array in media.items()}


def _share(
    load: Callable[[], LoadedRun],
    stream: str,
    prompts: Sequence[str | Prompt],
    config: SamplerConfig,
    seed: int,
    known: Mapping[str, Known] | None,
    batch_size: int,
    negative: str | None,
    items: Sequence[int],
) -> Iterator[tuple[int, dict[str, object]]]:
    chosen = [prompts[item] for item in items]
    model = load().generator
    made = generate(model, stream, chosen, config, seed, known, batch_size, negative=negative, numbers=items)
    for item, media in zip(items, made, strict=True):
        # Not as tensors: those travel in shared memory, which a process takes with it when it ends.
        yield item, {name: tensor.numpy() for name, tensor in media.items()}
