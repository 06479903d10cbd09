"""Student and teacher over the devices of a world: FSDP2, block by block, on a mesh (replicate, shard).

Every device of a shard group holds its share of the weights, gradients and optimizer state, and the groups are copies
of each other. With `replicas` equal to the world that is data parallelism, with 1 it is full sharding.

Losses are sums over a device's samples, divided by counts over all of them; so gradients are added up, not averaged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from core.errors import ConfigError
from core.training.distributed import World
from core.trunk.layers import blocks_of


class Sharding:
    """How the networks of a run lie on its devices; of a world of one, as they are.

    Args:
        replicas: copies of the weights; must divide the world.
        precision: fp32, or bf16 for all products, with float32 weights, gradients, sums and noise levels.

    Raises ConfigError for a number of replicas that does not divide the world.
    """

    def __init__(self, world: World, device: torch.device, replicas: int = 1, precision: str = "fp32"):
        if world.size % replicas:
            raise ConfigError(f"training.replicas: {replicas} does not divide the {world.size} processes of this run")
        self.world, self.mesh = world, None
        if world.size > 1:
            shape = (replicas, world.size // replicas)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
        # Inputs stay as they are: FSDP would round the noise levels and the rotary tables, too.
        self.policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        if precision == "bf16":
            self.policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

    def apply(self, model: nn.Module, teacher: bool = False) -> None:
        """Shard a network in place, the same in every process, before its optimizer is made.

        Args:
            teacher: it has no backward pass, after which its own layers would be shards again.
        """
        if self.mesh is None:
            return
        # It fears changes in place of what a block returns; the loops of the trunks make none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for module in (*blocks_of(model), model):
            after = True if teacher or module is not model else None
            fully_shard(module, mesh=self.mesh, mp_policy=self.policy, reshard_after_forward=after)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no premultiplied sum


@torch.no_grad()
def materialize(
    student: nn.Module, teacher: nn.Module, device: torch.device, start: Callable[[nn.Module], None]
) -> None:
    """Give sharded networks that were built on the meta device their storage and their initial weights.

    Args:
        start: fills the student, in place, with the weights of an unsharded one.
    """
    for model in (student, teacher):
        model.to_empty(device=device)
    start(student)
    for kept, current in zip(_tensors(teacher), _tensors(student), strict=True):
        kept.copy_(current)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def sync_gradients(model: nn.Module, last: bool) -> None:
    """Whether the next backward pass sums the gradients over all devices: only that of the last microbatch does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)


def settle(*models: nn.Module) -> None:
    """Make every parameter a shard again: a forward pass without a backward pass leaves some of them whole."""
    for model in models:
        if isinstance(model, FSDPModule):
            model.reshard()


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this device."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every device: an exchange."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients to a global norm of at most `limit`; the norm that they had, of all devices together."""
    return whole(nn.utils.clip_grad_norm_(parameters, limit))


def shell(model: nn.Module) -> nn.Module:
    """The network without its weights, made before it is sharded, to be filled by `gathered`."""
    return copy.deepcopy(model).to("meta")


def gathered(model: nn.Module, empty: nn.Module | None) -> nn.Module | None:
    """A whole network on this device with the weights of a sharded one; None without a shell. An exchange."""
    settle(model)
    weights: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        value = whole(tensor)
        if empty is not None:
            weights[name] = value
    if empty is None:
        return None
    found = copy.deepcopy(empty)
    found.load_state_dict(weights, assign=True)
    return found.requires_grad_(False)
