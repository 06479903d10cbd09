"""selfflow train --dry-run: open the data, build the trunk, check every shape, and say what a run would cost.

Nothing is written or fetched, and no weight has storage (torch's meta device): a model larger than this machine can be
looked at, before there are data and weights. What is not there is named, and what was not counted for it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import Tensor, nn

from configs.buckets import step_shares
from configs.captions import caption_report
from configs.schema import FIRST_FRAME, Config, StreamConfig
from configs.warnings import warnings
from core.errors import ConfigError
from core.schedule import NormalTimesteps, TimestepConfig
from core.trunk.recompute import recompute
from modalities.data.buckets import Bucket
from modalities.data.sources.config import SourceConfig
from modalities.streams import Parts, lengths
from tools.data_notes import data_lines
from tools.dry_run.exchange import exchange_lines
from tools.dry_run.flops import network_flops
from tools.dry_run.memory import microbatch_bytes, saved_bytes
from tools.dry_run.plan import Plan, Step, make_plan, not_here, one_line, stores_text
from tools.dry_run.state import state_bytes

DEVICES = (1, 8, 64)
GIB = 2**30


def describe(config: Config, root: Path) -> str:
    """What `config` would train, one fact a line; `root` is what relative paths start from.

    Raises the errors that training would raise before its first step, but for data and weights that are not there.
    """
    plan = make_plan(config, root)
    config = plan.assembly.config
    objective, trunk = plan.assembly.objective, plan.assembly.trunk
    recompute(trunk, config.training.recompute)
    lines = [f"method {config.method}, seed {config.seed}, {config.training.steps:,} steps"]
    if config.condition.kind == "label":
        lines[0] += f", {len(plan.assembly.labels):,} classes"
    streams = config.streams
    weights = step_shares(config, plan.assembly.sources)
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    flops: dict[str, int] = {}
    memory: dict[str, int] = {}
    cut: list[str] = []
    for name, entry in streams.items():
        step = plan.step(name)
        counted = network_flops(objective, trunk, step.microbatch) | step.frozen
        counted = {part: config.training.accumulate * count for part, count in counted.items()}
        flops[name] = sum(counted.values())
        device = "cpu" if config.training.device == "cpu" else "cuda"
        memory[name] = microbatch_bytes(step.microbatch) + saved_bytes(
            objective, trunk, step.microbatch, config.training.precision, device
        )
        lines += [name, *(f"  {line}" for line in stream_lines(plan, name, entry, step, shares[name]))]
        told, lost = caption_lines(plan, name, entry)
        lines += [f"  captions  {line}" for line in told]
        cut += lost
        lines.append(f"  compute   {compute_text(counted)}")
        lines += [f"  not there {missing_text(part, step)}" for part in step.missing]
    mean = sum(shares[name] * flops[name] for name in streams)
    if len(streams) > 1:
        lines.append(f"mean step {flops_text(mean)}, by the weights of the streams")
    lines += parameter_lines(trunk)
    lines += memory_lines(trunk, memory, config)
    lines += exchange_lines(trunk, objective, mean, config.training.accumulate, config.training.precision)
    lines += [f"warning: {line}" for line in [*warnings(config), *cut]]
    return "\n".join(lines)


def stream_lines(plan: Plan, name: str, entry: StreamConfig, step: Step, share: float) -> list[str]:
    """Data, tokens and timesteps of a stream."""
    text, words, channels = step.microbatch.batch.context.tokens, 1, ""
    if text is not None:
        words, channels = text.shape[1], f" of {text.shape[2]:,} channels" if text.is_floating_point() else ""
    source = plan.assembly.streams[name].source
    lines = [f"records   {len(source):,}, drawn in {share:.0%} of the steps"]
    if isinstance(source, Bucket) and source.enlarged:
        lines.append(f"          {source.enlarged:,} of them are smaller and enlarged; media.min_size leaves such out")
    lines += [f"          {line}" for line in data_lines(source)]
    if name in plan.absent:
        reason, *hints = plan.absent[name]
        lines = [f"data      not there: {reason}", *(f"          {hint}" for hint in hints)]
        lines.append(f"          drawn in {share:.0%} of the steps")
    loss = f"loss weight {entry.loss_weight:g}"
    mask = f"mask ratio {entry.mask_ratio:g}"
    return [
        *lines,
        *token_lines(plan.assembly.parts[name], entry),
        f"condition {words:,} token{'s' * (words != 1)}{channels} a sample",
        f"timesteps {timesteps_text(entry.timestep.at(sum(lengths(plan.assembly.parts[name]))))}; {mask}; {loss}",
        *mode_lines(entry),
    ]


def token_lines(parts: Parts, entry: StreamConfig) -> list[str]:
    """Grid and channels of the only part; of several, of each with its positions and weight, and their sum."""
    tokens = sum(lengths(parts))
    total = f"{tokens:,} a sample, {tokens * entry.batch:,} a step of {entry.batch} samples"
    grids = {
        name: f"{' x '.join(map(str, part.adapter.grid()))} (t, h, w) of {part.adapter.channels} channels"
        for name, part in parts.items()
    }
    if not entry.parts:
        (grid,) = grids.values()
        return [f"tokens    {grid}: {total}"]
    return [
        f"tokens    {total}, of {len(parts)} part{'s' * (len(parts) != 1)}",
        *(
            f"          {name}: {grids[name]}, {len(part.ids):,} tokens at {positions_text(part.ids)}; "
            f"loss weight {part.weight:g}"
            for name, part in parts.items()
        ),
    ]


def positions_text(ids: Tensor) -> str:
    """First and last position (N, 3) on every axis that has several, and how far apart those of time are."""
    found = []
    for axis, column in zip("thw", ids.unbind(1), strict=True):
        steps = column.unique().diff()
        if len(steps):
            apart = f" ({float(steps.min()):.4g} apart)" if axis == "t" else ""
            found.append(f"{axis} {column.min():g} to {column.max():g}{apart}")
    return ", ".join(found) or "one position"


def mode_lines(entry: StreamConfig) -> list[str]:
    """How parts are trained, in how many of the samples, and how noisy they are where they are given."""
    shares, found = entry.drawn_modes(), []
    always = [name for name, part in entry.parts.items() if part.given]
    if always:
        found.append(f"given     {', '.join(always)} in all samples")
    if shares:
        told = ", ".join(f"{name.replace('_', ' ')} in {share:.0%}" for name, share in shares.items())
        rest = ", shared in the others" if sum(shares.values()) < 1 else ""
        found.append(f"modes     {told} of the samples{rest}")
    for name, part in entry.parts.items():
        if part.timestep is not None:
            found.append(f"          {name} alone: {timesteps_text(part.timestep)}")
    if always or any(name == FIRST_FRAME or name.endswith("_given") for name in shares):
        found.append(f"          what is given has noise levels up to {entry.condition_noise:g}")
    return found


def caption_lines(plan: Plan, name: str, entry: StreamConfig) -> tuple[list[str], list[str]]:
    """(how long the captions of a stream are, warnings of what its limits cut); nothing is fetched to count them."""
    config, text = plan.assembly.config, plan.assembly.text
    if name in plan.absent or config.condition.kind != "text":
        return [], []
    if is_remote(entry.data):
        return ["not looked at, since the data are not on this machine"], []
    dataset = plan.assembly.dataset
    if text is not None and not stores_text(dataset, name) and (reason := not_here(text.tokenizer_path)):
        return [f"not counted: {reason}"], []
    sources = {name: plan.assembly.sources[name]}
    try:
        report = caption_report(config, sources, text)
    except ConfigError as error:  # no tokenizer at all
        return [f"not counted: {one_line(error)}"], []
    return (
        [found.describe() for found in report.values()],
        [f"streams.{name}.data: {line}" for found in report.values() for line in found.warnings()],
    )


def is_remote(data: SourceConfig) -> bool:
    return any("://" in path for path in data.paths())


def compute_text(counted: dict[str, int]) -> str:
    """FLOPs of a step and of its parts."""
    names = {"text encoder": "text encoder at most"}  # captions of the greatest length
    parts = ", ".join(f"{names.get(part, part)} {flops_text(count)}" for part, count in counted.items() if count)
    return f"about {flops_text(sum(counted.values()))} a step (matrix products, convolutions, attention): {parts}"


def missing_text(part: str, step: Step) -> str:
    """Which frozen network has no weights here, and whether its work is part of the count."""
    work = "its published size is counted" if part in step.frozen else "its work is not counted"
    return f"{part} ({work}): {step.missing[part]}"


def flops_text(count: float) -> str:
    return f"{count / 1e12:,.1f} TFLOP" if count >= 1e12 else f"{count / 1e9:,.3f} GFLOP"


def parameter_lines(trunk: nn.Module) -> list[str]:
    """Parameters of the student, by child of the trunk."""
    sizes: Counter[str] = Counter()
    for name, parameter in trunk.named_parameters():
        sizes[name.partition(".")[0]] += parameter.numel()
    return [f"parameters {sizes.total():,}", *(f"  {part:20} {size:>14,}" for part, size in sizes.items())]


def memory_lines(trunk: nn.Module, kept: dict[str, int], config: Config) -> list[str]:
    """What lies on each of several devices.

    Args:
        kept: stream -> bytes of a microbatch and of what its forward pass keeps.
    """
    largest = max(kept, key=kept.__getitem__)
    samples = -(-config.streams[largest].batch // config.training.accumulate)
    posthoc = config.training.posthoc_ema
    averages = len(posthoc.lengths) if posthoc.every else 0
    parts = state_bytes(trunk, config.training.optimizer, averages)
    total = sum(parts.values())
    state = {
        "replicated": [total] * len(DEVICES),
        "sharded": [-(-total // devices) for devices in DEVICES],
    }
    rows = [("devices", [f"{devices:,}" for devices in DEVICES])]
    for name, sizes in state.items():
        rows.append((f"state, {name}", [size_text(size) for size in sizes]))
        rows.append((f"with activations, {name}", [size_text(size + kept[largest]) for size in sizes]))
    each = ", ".join(f"{name} {size_text(size)}" for name, size in kept.items())
    return [
        "memory on each device",
        f"  state     {', '.join(f'{name} {size_text(size)}' for name, size in parts.items())}",
        f"  activations {each}; the largest counts ({largest}, {samples} samples, {config.training.precision})",
        *(f"  {name:28}{''.join(f'{value:>13}' for value in values)}" for name, values in rows),
        "  Activations are a microbatch and what its forward pass keeps for the backward pass, without torch.compile. "
        "Buffers that live shorter, frozen networks, and workspaces of libraries come on top.",
        f"  Sharded as FSDP2 does it, a device also gathers the weights of the block that it computes (up to "
        f"{largest_block(trunk):,} parameters). 8 and 64 devices are arithmetic, each with this batch as its share.",
    ]


def largest_block(trunk: nn.Module) -> int:
    """Parameters of the largest member of a list of modules."""
    blocks = [block for module in trunk.modules() if isinstance(module, nn.ModuleList) for block in module]
    return max((sum(parameter.numel() for parameter in block.parameters()) for block in blocks), default=0)


def size_text(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{1024 * size / GIB:,.2f} MiB"


def timesteps_text(config: TimestepConfig) -> str:
    """p(t) in words."""
    normal = isinstance(config, NormalTimesteps)
    text = f"{config.kind}(mean {config.mean:g}, std {config.std:g})" if normal else config.kind
    low, high = config.ends()
    if (low, high) != (0, 1):
        text += f" in [{low:g}, {high:g}]"
    if config.shift != 1:
        text += f", shift {config.shift:g}"
    if config.high_noise_prob:
        text += f", {config.high_noise_prob:.0%} in [{config.high_noise_low:g}, 1]"
    if config.buckets:
        text += f", {config.buckets} values"
    return text
