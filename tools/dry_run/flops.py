"""What a training step costs in FLOPs, counted while its networks run on tensors without storage: nothing is computed.

Matrix products, convolutions and attention count 2 FLOPs for a multiplication with its addition; elementwise work does
not count. Attention counts once, as its two batched products: the fused kernels of a CPU would count as nothing.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from core.noising import NoiseSample
from core.objective import Objective, total_loss
from core.training.loader import Microbatch
from core.trunk.layers import blocks_of
from core.trunk.recompute import is_recomputed, recompute
from core.types import map_tensors
from modalities.data.batches import RawBatch
from modalities.data.preprocess import DevicePreprocess

BACKWARD = 2  # a backward pass costs two forward passes, where all weights are trained
META = torch.device("meta")


def step_flops(
    objective: Objective, trunk: nn.Module, raw: RawBatch | Microbatch, preprocess: DevicePreprocess | None = None
) -> dict[str, int]:
    """FLOPs of one microbatch. A wrong shape raises here. The modules that are given stay as they are.

    Args:
        trunk: the student; the teacher is another one of it.
        raw: as the loader gives it, on the CPU.
        preprocess: completes it on the device; None for one that is complete.

    Returns:
        student: forward and backward, of the backward pass twice the forward; where weights are frozen, such as under
        LoRA, what it runs: no gradient is made that nothing needs. teacher: forward, to the layer where it
        stops. recomputed: blocks of the student that run again in the backward pass, where there are any. encoders:
        what `preprocess` runs: frozen encoders, and the encoding half of an autoencoder. total: their sum.
    """
    completed, encoders = complete(raw, preprocess)
    found = network_flops(objective, trunk, completed) | {"encoders": encoders}
    return found | {"total": sum(found.values())}


def network_flops(objective: Objective, trunk: nn.Module, completed: Microbatch) -> dict[str, int]:
    """FLOPs of student and teacher as in `step_flops`, for a completed microbatch on the meta device."""
    empty = without_storage(trunk)
    counters = {name: FlopCounterMode(display=False) for name in ("student", "teacher")}
    again = _count_again(empty, counters["student"])

    student, teacher = (_Counted(empty, counters[name]) for name in ("student", "teacher"))
    objective(student, teacher, completed.batch, completed.drawn, completed.counts, completed.targets)
    flops = {name: counter.get_total_flops() for name, counter in counters.items()}
    frozen = not all(parameter.requires_grad for parameter in trunk.parameters())
    backward = _backward_flops(objective, trunk, completed) if frozen else BACKWARD * flops["student"]
    found = {"student": flops["student"] + backward, "teacher": flops["teacher"]}
    return found | ({"recomputed": sum(again)} if again else {})


def _backward_flops(objective: Objective, trunk: nn.Module, completed: Microbatch) -> int:
    """FLOPs of a backward pass as it runs, with nothing computed again."""
    student, counter = without_storage(trunk), FlopCounterMode(display=False)
    recompute(student, 0)
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        moved = without_values(student, completed)
        losses = objective(student, student, moved.batch, moved.drawn, moved.counts, moved.targets)
        with counter:
            total_loss(losses).backward()
    return counter.get_total_flops()


def without_values(student: nn.Module, microbatch: Microbatch) -> Microbatch:
    """The microbatch as tensors that claim to be on the CPU, and those of the student in place, in a FakeTensorMode.

    Autograd knows no CUDA tensors where torch was built without CUDA, and autocast none on the meta device.
    """
    student._apply(_empty)  # what `to_empty` does, which asks for tensors of this mode
    return replace(
        microbatch,
        batch=map_tensors(microbatch.batch, _empty),
        drawn=map_tensors(microbatch.drawn, _empty),
        targets={name: _empty(target) for name, target in microbatch.targets.items()},
    )


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _count_again(trunk: nn.Module, counter: FlopCounterMode) -> list[int]:
    """A list that gets the FLOPs of each forward pass of a block that is computed again, of those in `counter`."""
    found: list[int] = []

    def enter(*_: object) -> None:
        found.append(-counter.get_total_flops())

    def leave(*_: object) -> None:
        found[-1] += counter.get_total_flops()

    for block in blocks_of(trunk):
        if is_recomputed(block):
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave)
    return found


class _Counted(nn.Module):
    """A network whose work is counted."""

    def __init__(self, network: nn.Module, counter: FlopCounterMode):
        super().__init__()
        self.network, self.counter = network, counter

    def forward(self, *arguments):
        with self.counter:
            return self.network(*arguments)


def complete(raw: RawBatch | Microbatch, preprocess: DevicePreprocess | None) -> tuple[Microbatch, int]:
    """(what `preprocess` makes of a batch, on the meta device; the FLOPs of it).

    Autocast knows no meta device, and an autoencoder that is copied leaves its weights behind. So the modules
    themselves run, on fake tensors; an encoder that looks at values, which these lack, really runs.
    """
    if preprocess is None:
        assert isinstance(raw, Microbatch)
        return raw.to(META), 0
    assert isinstance(raw, RawBatch)
    for part in raw.parts:
        adapter = preprocess.parts[raw.stream][part.name].adapter
        if part.latents is None and adapter.has_weights:
            adapter.load_weights()  # now, since what is made among fake tensors is fake
    encoders = preprocess.encoders.get(raw.stream, {}).values()
    device = next((parameter.device for encoder in encoders for parameter in encoder.parameters()), torch.device("cpu"))
    moved = raw.to(device)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            completed, flops = _count(preprocess, moved)
    except DataDependentOutputException:
        completed, flops = _count(preprocess, moved)
    # The draws are those of the real batch: nothing changes them, and their checks look at values.
    drawn = NoiseSample(tuple(part.noise for part in raw.parts), raw.student, raw.teacher)
    batch = map_tensors(completed.batch, on_meta)
    targets = {name: on_meta(target) for name, target in completed.targets.items()}
    return replace(completed, batch=batch, drawn=drawn, targets=targets).to(META), flops


def on_meta(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape and dtype, on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)


def _count(preprocess: DevicePreprocess, raw: RawBatch) -> tuple[Microbatch, int]:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        completed = preprocess(raw)
    return completed, counter.get_total_flops()


def without_storage(module: nn.Module) -> nn.Module:
    """A copy on the meta device; no weight is copied on the way."""
    with _CopiesToMeta():
        return copy.deepcopy(module)


class _CopiesToMeta(TorchFunctionMode):
    """A tensor's deep copy becomes an empty one. A parameter's asks for a clone of its data."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in (Tensor.__deepcopy__, Tensor.clone):
            return arguments[0].to(META)
        return function(*arguments, **(keywords or {}))
