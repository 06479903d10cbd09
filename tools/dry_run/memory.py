"""What a training step keeps in memory, counted while its networks run on tensors without storage.

Three parts: what belongs to the weights (tools/dry_run/state.py), what the forward pass of a microbatch keeps for its
backward pass (`saved_bytes`), and the microbatch (`microbatch_bytes`). Temporary buffers, workspaces of libraries and
what an allocator wastes come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from core.objective import Objective, total_loss
from core.training.loader import Microbatch
from core.trunk.layers import blocks_of
from core.trunk.recompute import MARK, is_recomputed
from core.types import map_tensors
from tools.dry_run.flops import without_storage, without_values

# Functions of trunks, alignment terms and distances that autocast runs in float32 on CUDA, and in bfloat16 on a CPU
# (ATen/autocast_mode.h, AT_FORALL_FP32).
FLOAT32_ON_CUDA = frozenset({"layer_norm", "rms_norm", "cosine_similarity"})


def microbatch_bytes(microbatch: Microbatch) -> int:
    """Bytes of a completed microbatch, which stays on the device until its backward pass is done."""
    found: list[Tensor] = []
    for part in (microbatch.batch, microbatch.drawn, *microbatch.targets.values()):
        map_tensors(part, lambda tensor: found.append(tensor) or tensor)
    return sum(tensor.nbytes for tensor in found)


def saved_bytes(objective: Objective, trunk: nn.Module, microbatch: Microbatch, precision: str, device: str) -> int:
    """Bytes that the forward pass of the student keeps for its backward pass, besides the weights themselves.

    Memory that several operations keep counts once. Blocks that are computed again in the backward pass keep what they
    take in; what the largest of them then keeps is added, since it lies there while its gradient is made. With bf16 the
    copies of the weights that autocast makes are part of it. Of attention it has what fused kernels keep: queries,
    keys, values, result, and one number for each row.

    Args:
        trunk: the student, see core/trunk/recompute.py for its blocks; it stays as it is.
        microbatch: completed (modalities/data/preprocess.py), on any device.
        precision: of the training, fp32 or bf16.
        device: cpu or cuda, on which autocast differs.
    """
    student = without_storage(trunk)
    with FakeTensorMode(), ExitStack() as stack:
        moved = without_values(student, microbatch)
        if precision == "bf16":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if device == "cuda":
                stack.enter_context(_Float32OnCuda())
        return sum(kept_by_forward(objective, student, moved))


def kept_by_forward(objective: Objective, student: nn.Module, microbatch: Microbatch) -> tuple[int, int]:
    """(bytes kept until the backward pass, bytes that the largest block keeps when it is computed again).

    Of a student and a microbatch as they are; the student is its own teacher, which keeps nothing.
    """
    weights = {_storage(tensor) for tensor in _tensors(student)}
    kept: dict[int, int] = {}
    inside: dict[nn.Module, dict[int, int]] = {block: {} for block in blocks_of(student) if is_recomputed(block)}
    now = [kept]

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            now[-1][_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def enter(block: nn.Module, taken: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            map_tensors(taken, note)
        now.append(inside[block])

    with ExitStack() as stack:
        for block in inside:
            # Each keeps everything while it is counted, so that no storage is freed and its address given out again.
            stack.callback(setattr, block, MARK, True)
            setattr(block, MARK, False)
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(lambda *_: now.pop() and None).remove)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss = total_loss(
                objective(student, student, microbatch.batch, microbatch.drawn, microbatch.counts, microbatch.targets)
            )
    del loss  # held its graph, and so every storage, until here
    again = [sum(size for storage, size in own.items() if storage not in kept) for own in inside.values()]
    return sum(kept.values()), max(again, default=0)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Float32OnCuda(TorchFunctionMode):
    """Autocast of CUDA, for tensors on the CPU."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if getattr(function, "__name__", "") in FLOAT32_ON_CUDA:
            arguments, keywords = (
                [_to_float32(value) for value in arguments],
                {name: _to_float32(value) for name, value in keywords.items()},
            )
        return function(*arguments, **keywords)


def _to_float32(value):
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
