"""How time and memory of a step grow with the tokens of a sample, and with the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from core.keys import generator
from core.training.trainer import Trainer
from core.trunk.layers import blocks_of
from core.trunk.sit import SiT
from tools.bench import measure
from tools.bench.measure import Row, Times, median_row, ratio_row, side_by_side
from tools.bench.peer import Peer, training_step
from tools.bench.sections import GIB, share_rows, sit_trainer, step_flops
from tools.bench.sides import Setup, build_sit, class_context, make_microbatch, sit_config, step_of

KIB = 2**10
TOKENS_BATCH = 1
OURS, OFFICIAL, ATTENTION = "Self-Flow", "official class, Self-Flow", "attention alone"


@dataclass(frozen=True)
class Grown:
    """One size, measured in a process of its own.

    Attributes:
        times: seconds of every step, and of its attention alone where the step is ours.
        before, peak: bytes before anything was built, and at most.
        flops, attention_flops: of the step, as `step_flops` counts; 0 for the official class.
    """

    times: Times
    before: int
    peak: int
    flops: int = 0
    attention_flops: int = 0


def tokens_rows(setup: Setup, counts: list[int], recomputes: list[int], peak_tflops: float | None) -> list[Row]:
    """A Self-Flow step as a sample grows; the counts are squares.

    Attention is timed alone, on tensors of its shape, in turn with the step: the same number of passes, kernels only.
    """
    rows = []
    for count in counts:
        sized = replace(setup, grid=round(count**0.5), batch=TOKENS_BATCH)
        for every in recomputes:
            grown, what = (
                measure.in_own_process(grow, replace(sized, recompute=every), None),
                f"{count} tokens{said(every)}",
            )
            own = {OURS: grown.times[OURS]}
            each = [1000 * seconds / count for seconds in grown.times[OURS]]
            rows += [
                median_row("tokens", what, grown.times[OURS], "s/step", own),
                median_row("tokens", f"{what}: for each", each, "ms/token", own),
                *share_rows("tokens", grown.flops, grown.times, OURS, peak_tflops, f"{what}: "),
                Row("tokens", f"{what}: attention's share of the FLOPs", share(grown), "%"),
                percent(ratio_row("tokens", f"{what}: {ATTENTION}", grown.times, ATTENTION, OURS)),
                *memory_rows("tokens", what, grown, count, setup.device),
            ]
    return rows


def batch_rows(setup: Setup, sizes: list[int], recomputes: list[int], peer_folder: Path | None) -> list[Row]:
    """Time per image and peak memory of a Self-Flow step as the batch grows."""
    rows = []
    for size in sizes:
        sized = replace(setup, batch=size)
        sides = {f"{OURS}{said(every)}": (every, None) for every in recomputes}
        sides |= {OFFICIAL: (0, peer_folder)} if peer_folder else {}
        for name, (every, folder) in sides.items():
            grown, what = measure.in_own_process(grow, replace(sized, recompute=every), folder), f"batch {size}, {name}"
            (side,) = {*grown.times} - {ATTENTION}
            per_image = [1000 * seconds / size for seconds in grown.times[side]]
            rows.append(median_row("batch", what, per_image, "ms/image", {name: grown.times[side]}))
            rows += memory_rows("batch", what, grown, size * setup.tokens, setup.device)
    return rows


def said(every: int) -> str:
    return f", recompute {every}" if every else ""


def share(grown: Grown) -> float:
    return 100 * grown.attention_flops / grown.flops


def percent(row: Row) -> Row:
    return replace(
        row, value=100 * row.value, low=100 * (row.low or 0), high=100 * (row.high or 0), unit="% of a step's time"
    )


def memory_rows(section: str, what: str, grown: Grown, tokens: int, device: str) -> list[Row]:
    """Peak memory, and what of it grew with this step, by token: weights, gradients and moments are in it too."""
    rows = [Row(section, f"{what}: peak memory", grown.peak / GIB, "GiB")]
    if device == "cpu":
        rows.append(Row(section, f"{what}: of which interpreter and libraries", grown.before / GIB, "GiB"))
    return [*rows, Row(section, f"{what}: the rest, by token", (grown.peak - grown.before) / tokens / KIB, "KiB")]


def grow(setup: Setup, peer_folder: Path | None) -> Grown:
    """Steps of one size, of ours or of the official class."""
    torch.set_num_threads(setup.threads)
    peer = Peer(peer_folder) if peer_folder else None
    before = measure.peak_memory(setup.device)
    if peer:
        microbatch = make_microbatch(setup, "self_flow", sit_config(setup).channels, class_context(setup))
        step = training_step(setup, peer.build(build_sit(setup), setup.device), microbatch)
        times = side_by_side({OFFICIAL: step}, setup.rounds, setup.warmup, setup.device, setup.clock)
        return Grown(times, before, measure.peak_memory(setup.device))
    with sit_trainer(setup) as trainer:
        sides = {OURS: step_of(trainer), ATTENTION: attention_of(trainer, setup)}
        times = side_by_side(sides, setup.rounds, setup.warmup, setup.device, setup.clock)
        flops = step_flops(trainer, SiT, sit_config(setup))
        return Grown(times, before, measure.peak_memory(setup.device), flops, attention_flops(trainer, setup))


def layers(trainer: Trainer) -> tuple[int, int]:
    """(blocks of the student, blocks of the teacher up to its layer)."""
    (alignment,) = trainer.objective.terms
    taps = alignment.teacher_feature_layers
    assert taps is not None  # of Self-Flow's teacher
    assert taps.stop_after is not None
    return len(blocks_of(trainer.student)), taps.stop_after


def attention_flops(trainer: Trainer, setup: Setup) -> int:
    """Of its two products, 4 B T^2 D a layer: the student's three times, since its backward pass counts two."""
    depth, teacher = layers(trainer)
    return (3 * depth + teacher) * 4 * setup.batch * setup.tokens**2 * sit_config(setup).shape().width


def attention_of(trainer: Trainer, setup: Setup) -> Callable[[], None]:
    """All attention of a step, and nothing else of it."""
    width, _, heads = sit_config(setup).shape()
    depth, teacher = layers(trainer)
    again = depth // setup.recompute if setup.recompute else 0
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32

    def run() -> None:
        shape = (setup.batch, heads, setup.tokens, width // heads)
        draw = generator("bench", "attention")
        q, k, v, given = (torch.randn(shape, generator=draw).to(setup.device, dtype) for _ in range(4))
        leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
        for _ in range(depth):
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), leaves, given)
        with torch.no_grad():
            for _ in range(again + teacher):
                F.scaled_dot_product_attention(q, k, v)

    return run
