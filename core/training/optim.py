"""Which optimizer trains the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor, nn

from core.errors import ConfigError, nearest
from core.kinds import combined, row
from core.optional import missing, need
from core.training.initialize import fitting
from core.training.rates import SCHEDULES, ScheduleConfig

WITHOUT_8BIT = "training.optimizer.kind adamw and muon work"


@dataclass
class OptimizerConfig(ScheduleConfig):
    """What every kind has, and AdamW, which has nothing else.

    `OptimizerConfig(kind="muon", schedule="cosine", min_lr=1e-5)` makes the dataclass of that kind and schedule, a row
    of OPTIMIZERS, and raises ConfigError for those that do not exist.

    Attributes:
        kind: adamw; muon (torch's own, for the weight matrices of the blocks, see `hidden_matrices`; AdamW for all
            others); or adamw8bit (bitsandbytes: moments of 4096 numbers and more take a byte each, not four).
        betas, eps, weight_decay: of AdamW; the defaults, with lr, are REPA's, which the ImageNet runs follow. Muon has
            the same lr and weight_decay: its updates are scaled to the size of AdamW's (arXiv 2502.16982).
        clip: largest global gradient norm.
        rates: pattern of names (a part of the network, or with `*`) -> learning rate in place of lr, with its schedule;
            the first that fits a weight counts. `*lora_*` are the adapters, `projector` the head of the EMA teacher.
    """

    kind: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)

    def __new__(cls, *_args: Any, kind: str = "adamw", schedule: str = "constant", **_settings: Any) -> Self:
        chosen: Any = row(OPTIMIZERS, {"kind": kind, "schedule": schedule}) if cls is OptimizerConfig else cls
        return super().__new__(chosen)

    def problems(self) -> list[str]:
        found = [
            f"{name}: {getattr(self, name)} must be above 0" for name in ("eps", "clip") if getattr(self, name) <= 0
        ]
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas: {list(self.betas)} must be two numbers in [0, 1)")
        if self.weight_decay < 0:
            found.append(f"weight_decay: {self.weight_decay} must not be negative")
        found += [f"rates.{name}: {rate} must be above 0" for name, rate in self.rates.items() if rate <= 0]
        return super().problems() + found


@dataclass
class MuonConfig(OptimizerConfig):
    """
    Attributes:
        momentum: of Muon, in [0, 1).
    """

    momentum: float = 0.95

    def problems(self) -> list[str]:
        own = [] if 0 <= self.momentum < 1 else [f"momentum: {self.momentum} must lie in [0, 1)"]
        return super().problems() + own


@dataclass
class AdamW8bitConfig(OptimizerConfig):
    def problems(self) -> list[str]:
        there = find_spec("bitsandbytes") is not None
        return super().problems() + ([] if there else [missing("bitsandbytes", "kind: 'adamw8bit'", WITHOUT_8BIT)])


KINDS: dict[str, type[OptimizerConfig]] = {"adamw": OptimizerConfig, "muon": MuonConfig, "adamw8bit": AdamW8bitConfig}
OPTIMIZERS = combined(OptimizerConfig, __name__, {"kind": KINDS, "schedule": SCHEDULES})


class TwoOptimizers:
    """Muon and AdamW, each with its own parameters, as one optimizer.

    Attributes:
        parts: the optimizers.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Parameter -> its live slots."""
        return {parameter: slots for part in self.parts for parameter, slots in part.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()


AnyOptimizer = torch.optim.Optimizer | TwoOptimizers


def optimizers_of(optimizer: AnyOptimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, TwoOptimizers) else (optimizer,)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> AnyOptimizer:
    """The optimizer of the trained parameters. Raises ConfigError for Muon on a model without blocks, and where a
    package is missing."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for pattern in config.rates:
        if not any(fitting(name, pattern) for name in trained):
            parts = list(dict.fromkeys(name.split(".")[0] for name in trained))
            raise ConfigError(
                f"training.optimizer.rates: {pattern!r} fits nothing that is trained: {', '.join(parts)}."
                f"{nearest(pattern, parts)}"
            )
    if isinstance(config, AdamW8bitConfig):
        library = need("bitsandbytes", "training.optimizer.kind: 'adamw8bit'", WITHOUT_8BIT)
        return library.optim.AdamW8bit(rated(config, trained), **_adamw_settings(config))
    if not isinstance(config, MuonConfig):
        return _adamw(config, trained)
    hidden = dict(hidden_matrices(model))
    if not hidden:
        raise ConfigError(
            "training.optimizer.kind: 'muon' trains the weight matrices of blocks, and the model has none"
        )
    others = {name: parameter for name, parameter in trained.items() if name not in hidden}
    muon = torch.optim.Muon(
        rated(config, hidden),
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",  # so that one learning rate suits both
    )
    return TwoOptimizers(muon, _adamw(config, others))


def hidden_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, weight) of what Muon trains: the matrices of attention and MLP in every block, also of a text encoder
    that is trained with the trunk.

    Not embeddings, input and output layers, times, modulations (they start at zero and map a condition, not features),
    projectors, and whatever is no matrix.
    """
    for name, parameter in model.named_parameters():
        inside = re.search(r"(?:^|[._])blocks\.\d+\.", name) and "modulation" not in name.lower()
        if inside and parameter.ndim == 2 and parameter.requires_grad:
            yield name, parameter


def rated(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of parameters of one learning rate each: `rate` is a group's factor of that of the step."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = next((rate for pattern, rate in config.rates.items() if fitting(name, pattern)), config.lr)
        groups.setdefault(rate / config.lr, []).append(parameter)
    return [{"params": members, "rate": rate} for rate, members in groups.items()]


def _adamw(config: OptimizerConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
    """Fused: four times cheaper than the other forms, on CPU too."""
    return torch.optim.AdamW(rated(config, parameters), **_adamw_settings(config), fused=True)


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "lr": config.lr,
        "betas": tuple(config.betas),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
