"""What a training keeps for its weights from step to step: the weights, their gradients, moments and averages.

Weights that are not trained have none of the last three, and student and teacher hold the same tensors of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from core.training.optim import OptimizerConfig, hidden_matrices

FLOAT32 = 4  # bytes
# bitsandbytes: moments of so many numbers and more are bytes, with a float32 scale for each block of them.
LEAST_8BIT, BLOCK_8BIT = 4096, 256


def state_bytes(trunk: nn.Module, optimizer: OptimizerConfig, averages: int = 0) -> dict[str, int]:
    """What -> bytes, of a student that is frozen as its run freezes it.

    Args:
        trunk: with or without storage.
        averages: post-hoc EMAs that are kept besides the teacher.
    """
    frozen = [parameter for parameter in trunk.parameters() if not parameter.requires_grad]
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    found = {"trained weights": _bytes(trained), "gradients": _bytes(trained)}
    found |= moment_bytes(trunk, optimizer)
    found |= {"EMA teacher": _bytes(trained)}
    if frozen:
        found = {"frozen weights": _bytes(frozen)} | found
    if averages:
        found[f"{averages} post-hoc EMAs"] = averages * FLOAT32 * sum(each.numel() for each in trunk.parameters())
    return found


def moment_bytes(trunk: nn.Module, optimizer: OptimizerConfig) -> dict[str, int]:
    """The optimizer's name for its moments -> bytes."""
    trained = {name: parameter.numel() for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    adam = {name: 2 * FLOAT32 * count for name, count in trained.items()}
    if optimizer.kind == "adamw8bit":
        small = {name: size for name, size in adam.items() if trained[name] < LEAST_8BIT}
        return {
            "8-bit Adam moments": sum(small.values())
            + sum(2 * (count + FLOAT32 * -(-count // BLOCK_8BIT)) for n, count in trained.items() if n not in small)
        }
    if optimizer.kind == "muon":
        hidden = {name for name, _ in hidden_matrices(trunk)}
        return {"Muon and Adam moments": sum(size // (2 if name in hidden else 1) for name, size in adam.items())}
    return {"Adam moments": sum(adam.values())}


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
