"""selfflow train --dry-run: open the data, build the trunk, check every shape, and say what a run would cost.

Nothing is written. The trunk has no storage (torch's meta device), so that a model larger than this machine can be
looked at.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from math import prod
from pathlib import Path

import torch
from torch import nn

from configs.build import build_dataset, build_streams, class_names, measure_all
from configs.networks import build_adapters, build_encoders, build_trunk, device_prepare, projector_specs
from configs.schema import Config
from core.alignment.terms import build_alignment
from core.errors import ConfigError
from core.objective import Objective
from core.schedule import TimeConfig
from core.training.feed import Microbatch
from modalities.base import ModalityAdapter
from modalities.data.loader import StepDataset
from tools.flops import step_flops

# float32 numbers kept for each parameter: weight, gradient, EMA, and AdamW's two moments.
NUMBERS_PER_PARAMETER = 5


def describe(config: Config, root: Path) -> str:
    """What `config` would train. Raises the errors that training would raise before its first step."""
    adapters = build_adapters(config, root)
    streams = build_streams(config, adapters, root)
    labels = class_names(streams)
    encoders = build_encoders(config, adapters, root)
    with torch.device("meta"):
        trunk = build_trunk(config, adapters, labels, projector_specs(config, encoders))
    missing = missing_weights(adapters)
    ready = {name: stream for name, stream in streams.items() if name not in missing}
    whitening = measure_all(config, ready)
    dataset = build_dataset(config, streams, whitening, labels)
    objective = Objective(build_alignment(config.alignment, trunk.depth))
    prepare = device_prepare({name: adapters[name] for name in ready}, whitening, encoders, torch.device("cpu"))

    lines = [f"method {config.method}, seed {config.seed}, {config.training.steps} steps, {len(labels)} classes"]
    shares = sum(entry.share for entry in config.modalities.streams().values())
    for name, entry in config.modalities.streams().items():
        adapter = adapters[name]
        microbatch = first_microbatch(dataset, name)
        counted = step_flops(objective, trunk, microbatch, prepare if name in ready else None)
        flops = config.training.accumulate * counted["total"]
        tokens = prod(adapter.grid())
        lines += [
            f"{name}",
            f"  records   {len(streams[name].source):,}, drawn in {entry.share / shares:.0%} of the steps",
            f"  tokens    {' x '.join(map(str, adapter.grid()))} (t, h, w) of {adapter.channels} channels: "
            f"{tokens:,} a sample, {tokens * entry.batch:,} a step of {entry.batch} samples",
            f"  times     {time_text(entry.time)}; mask ratio {entry.mask_ratio:g}; loss weight {entry.loss_weight:g}",
            f"  compute   about {flops / 1e9:,.1f} GFLOP a step (matrix products and attention)",
        ]
        if name in missing:
            lines.append(f"  warning: cannot train, and its encoders are not counted: {missing[name]}")
    sizes = parameters_by_part(trunk)
    total = sum(sizes.values())
    lines += [f"parameters {total:,}", *(f"  {part:20} {size:>14,}" for part, size in sizes.items())]
    memory = total * 4 * NUMBERS_PER_PARAMETER / 2**20
    lines.append(f"memory    {memory:,.0f} MiB for weights, gradients, EMA and optimizer; activations come on top")
    if warning := config.training.ema.warning(config.training.steps):
        lines.append(f"warning: {warning}")
    return "\n".join(lines)


def missing_weights(adapters: dict[str, ModalityAdapter]) -> dict[str, str]:
    """modality -> why its autoencoder's weights cannot be read. Grid and channels are known without them."""
    found = {}
    for name, adapter in adapters.items():
        try:
            adapter.load_weights()
        except ConfigError as error:
            found[name] = " ".join(str(error).split())
    return found


def first_microbatch(dataset: StepDataset, modality: str) -> Microbatch:
    """The first one that training would see of a modality."""
    step = next(step for step in count() if dataset.mix.modality(step) == modality)
    return dataset[step * dataset.accumulate]


def parameters_by_part(trunk: nn.Module) -> dict[str, int]:
    """Parameters of each child of the trunk."""
    sizes: Counter[str] = Counter()
    for name, parameter in trunk.named_parameters():
        sizes[name.partition(".")[0]] += parameter.numel()
    return dict(sizes)


def time_text(config: TimeConfig) -> str:
    """p(t) in words."""
    text = config.kind if config.kind == "uniform" else f"{config.kind}(mean {config.mean:g}, std {config.std:g})"
    if (config.low, config.high) != (0, 1):
        text += f" in [{config.low:g}, {config.high:g}]"
    if config.shift != 1:
        text += f", shift {config.shift:g}"
    if config.high_noise_share:
        text += f", {config.high_noise_share:.0%} in [{config.high_noise_low:g}, 1]"
    if config.buckets:
        text += f", {config.buckets} values"
    return text
