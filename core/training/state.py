"""The state of a training as parts of a checkpoint, and back: student, teacher, optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from core.errors import CheckpointError
from core.training.checkpoint import CheckpointStore
from core.training.optim import AnyOptimizer, optimizers_of

_NO_MORE: Mapping[str, dict[str, Any]] = MappingProxyType({})


def training_state(student: nn.Module, teacher: nn.Module, optimizer: AnyOptimizer) -> dict[str, dict[str, Any]]:
    """{"student": {name: tensor}, "teacher": {name: tensor}, "optimizer": {parameter name: {slot: tensor}}}.

    The tensors are the live ones, sharded where the modules are. Hyperparameters are not part of it: they are
    functions of the configuration and the step. The optimizer's part is not made by torch's
    `get_optimizer_state_dict`: its counterpart refuses a state in which some parameters have none yet, such as the
    layers of a modality that no step has drawn so far.
    """
    state = optimizer.state
    slots = {
        name: {slot: _as_tensor(value) for slot, value in state[parameter].items()}
        for name, parameter in _optimized(student, optimizer)
        if parameter in state
    }
    return {"student": get_model_state_dict(student), "teacher": get_model_state_dict(teacher), "optimizer": slots}


@dataclass(frozen=True)
class Anew:
    """What a run does not take from its checkpoint, since its settings were changed after it.

    Attributes:
        parts: of the network, such as `projector`: those that are new or of another kind start from their initial
            weights, and those that are no longer needed are left behind.
        optimizer: its whole state, of an optimizer of another kind.
    """

    parts: tuple[str, ...] = ()
    optimizer: bool = False

    def leaves(self, key: str) -> bool:
        """Whether a key of the checkpoint, like "student/projector.linear1.weight", is not taken."""
        part, _, name = key.partition("/")
        inside = any(name == part or name.startswith((f"{part}.", f"{part}/")) for part in self.parts)
        return inside or (self.optimizer and part == "optimizer")


NOTHING_ANEW = Anew()


def restore(
    store: CheckpointStore,
    step: int,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: AnyOptimizer,
    anew: Anew = NOTHING_ANEW,
    more: Mapping[str, dict[str, Any]] = _NO_MORE,
) -> None:
    """Load what `training_state` returned, strictly except for `anew`.

    Args:
        more: further parts of the checkpoint, read in place.

    Raises CheckpointError naming each key that does not fit.
    """
    parameters = _optimized(student, optimizer)
    by_name = dict(parameters)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, item in store.stored(step).items():
        part, rest = key.split("/", 1)
        name, _, slot = rest.rpartition("/")
        if part == "optimizer" and name in by_name and not anew.leaves(key):
            parameter = by_name[name].detach()
            dtype = item.properties.dtype  # moments of one byte, and a count of steps that is no number of the weights
            if tuple(item.size) == tuple(parameter.shape):
                empty = torch.empty_like(parameter, dtype=dtype)
            else:
                empty = torch.empty(item.size, dtype=dtype, device=parameter.device)
            slots.setdefault(name, {})[slot] = empty
    weights, average = get_model_state_dict(student), get_model_state_dict(teacher)
    store.load(step, {"student": weights, "teacher": average, "optimizer": slots, **more}, anew.leaves)
    set_model_state_dict(student, weights, options=StateDictOptions(strict=True))
    set_model_state_dict(teacher, average, options=StateDictOptions(strict=True))
    for part in optimizers_of(optimizer):
        numbered = {
            index: {slot: _from_tensor(slot, value) for slot, value in slots[name].items()}
            for index, (name, _) in enumerate(_optimized(student, part))
            if name in slots
        }
        _check_slots(
            part, {name: slots[name] for name, _ in _optimized(student, part) if name in slots}, str(store.folder(step))
        )
        part.load_state_dict({"state": numbered, "param_groups": part.state_dict()["param_groups"]})


def _check_slots(part: torch.optim.Optimizer, slots: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    """Raise CheckpointError where a parameter lacks what others have; torch's optimizers would fail in their next step.
    bitsandbytes keeps other slots for small parameters."""
    if not type(part).__module__.startswith("torch."):
        return
    every = dict.fromkeys(slot for own in slots.values() for slot in own)
    for name, own in slots.items():
        for slot in every:
            if slot not in own:
                raise CheckpointError(f"{where}: the optimizer's state of {name} has no {slot}")


def _as_tensor(value: Tensor | int) -> Tensor:
    """bitsandbytes counts its steps with Python's numbers."""
    return torch.tensor(value) if isinstance(value, int) else value


def _from_tensor(slot: str, value: Tensor) -> Tensor | int:
    """The inverse: torch's own optimizers count in floats, so that a whole number is one of Python's."""
    return int(value) if slot == "step" and not value.is_floating_point() else value


def _optimized(model: nn.Module, optimizer: AnyOptimizer) -> list[tuple[str, nn.Parameter]]:
    """The optimizer's parameters, in its order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter not in names for parameter in parameters):
        raise CheckpointError("the optimizer holds a parameter that is not one of the student's")
    return [(names[parameter], parameter) for parameter in parameters]
