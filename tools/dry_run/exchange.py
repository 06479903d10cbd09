"""What the devices of a run send each other in a step, as FSDP2 does it here: arithmetic, nothing is measured.

Weights are gathered for the forward and the backward pass of every microbatch of the student (those outside of its
blocks stay between the two), and for the forward pass of the teacher. Gradients are added up once a step, within the
group that a network is sharded over and then over its copies. An exchange of M bytes over n devices brings each of them
M (n - 1) / n bytes, and a sum over n copies twice that; recompute adds none. Blocks are gathered while others compute,
so that what counts is whether the bytes arrive within that time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from core.alignment.base import merge_feature_layers
from core.objective import Objective
from core.trunk.layers import blocks_of

GRADIENT = 4  # bytes of a number: sums are float32
PEAK, SHARE = 989e12, 0.4  # FLOP/s of an H100 or H200 in bfloat16, dense (its data sheet), and what a step may reach
WORLDS = (8, 64, 512)
HOST = 8  # devices


@dataclass(frozen=True)
class Networks:
    """Numbers of parameters.

    Attributes:
        blocks: of the student, in all of its blocks.
        around: of the student, outside of its blocks.
        teacher: that its forward pass needs; 0 where no teacher runs.
    """

    blocks: int
    around: int
    teacher: int


def networks(trunk: nn.Module, objective: Objective) -> Networks:
    """Of a run with this student, whose teacher stops where the alignment wants."""
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks_of(trunk)]
    around = sum(parameter.numel() for parameter in trunk.parameters()) - sum(sizes)
    wanted = [term.teacher_feature_layers for term in objective.terms_at(0) if term.teacher_feature_layers]
    teacher = around + sum(sizes[: merge_feature_layers(wanted).stop_after]) if wanted else 0
    return Networks(sum(sizes), around, teacher)


def exchanged_bytes(
    found: Networks, shard: int, replicas: int, microbatches: int = 1, precision: str = "bf16"
) -> tuple[int, int]:
    """Bytes that each device receives in a step, (within its group, from the copies).

    Args:
        shard: devices that a network is sharded over.
        replicas: groups of so many devices, which are copies of each other.
        microbatches: of each device in a step.
        precision: bf16 or fp32, of the weights that are gathered.
    """
    weights = {"bf16": 2, "fp32": 4}[precision] * (2 * found.blocks + found.around + found.teacher) * microbatches
    gradients = GRADIENT * (found.blocks + found.around)
    within = (weights + gradients) * (shard - 1) / shard
    between = 2 * gradients / shard * (replicas - 1) / replicas
    return round(within), round(between)


def exchange_lines(
    trunk: nn.Module, objective: Objective, flops: float, microbatches: int, precision: str
) -> list[str]:
    """A table, for a step of so many FLOPs on each device."""
    found, seconds = networks(trunk, objective), flops / (PEAK * SHARE)
    layouts = {
        "sharded over all": [(world, 1) for world in WORLDS],
        f"over {HOST}, copies between": [(HOST, world // HOST) for world in WORLDS],
        "copies": [(1, world) for world in WORLDS],
    }
    lines = [
        "exchanges of each device in a step (arithmetic): GB received, and GB/s that hide them behind "
        f"{seconds:.3g} s of compute ({SHARE:.0%} of {PEAK / 1e12:.0f} TFLOP/s)",
        f"  {'devices':28}" + "".join(f"{world:>18,}" for world in WORLDS),
    ]
    for name, sizes in layouts.items():
        both = [exchanged_bytes(found, *size, microbatches, precision) for size in sizes]
        each = [sum(sizes) / 1e9 for sizes in both]
        lines.append(f"  {name:28}" + "".join(f"{f'{size:.2f} ({size / seconds:.1f})':>18}" for size in each))
        if all(both[-1]):
            row = "".join(f"{f'{size / 1e9:.2f} ({size / 1e9 / seconds:.1f})':>18}" for _, size in both)
            lines.append(f"  {'  of it between the copies':28}{row}")
    return lines
