"""Which optimizer trains the weights, and the learning rate as a function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ConfigError, nearest
from core.optional import missing, need
from core.training.initialize import fitting

KINDS = ("adamw", "muon", "adamw8bit")
SCHEDULES = ("constant", "cosine", "wsd")
DECAYS = ("linear", "1-sqrt")
WITHOUT_8BIT = "training.optimizer.kind adamw and muon work"


@dataclass
class OptimizerConfig:
    """
    Attributes:
        kind: adamw; muon (torch's own, for the weight matrices of the blocks, see `hidden_matrices`; AdamW for all
            others); or adamw8bit (bitsandbytes: moments of 4096 numbers and more take a byte each, not four).
        lr, betas, eps, weight_decay: of AdamW; the defaults are REPA's, which the ImageNet runs follow. Muon has the
            same lr and weight_decay: its updates are scaled to the size of AdamW's (arXiv 2502.16982).
        momentum: of Muon.
        clip: largest global gradient norm.
        schedule: constant; cosine (half a cosine from the end of the warmup to the end of the run); or wsd (warmup,
            stable, decay: constant, then `cooldown` steps of `decay`).
        warmup: steps of linear rise from 0.
        cooldown: steps of fall at the end of the run: linear to 0 with constant, `decay` to min_lr with wsd.
        decay: shape of wsd's fall: linear, or 1-sqrt (arXiv 2405.18392).
        min_lr: where cosine and wsd end.
        rates: pattern of names (a part of the network, or with `*`) -> learning rate in place of lr, with its schedule;
            the first that fits a weight counts. `*lora_*` are the adapters, `projector` the head of the EMA teacher.
    """

    kind: str = "adamw"
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.95
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    cooldown: int = 0
    decay: str = "1-sqrt"
    min_lr: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        found = [
            f"{name}: {getattr(self, name)} must be above 0"
            for name in ("lr", "eps", "clip")
            if getattr(self, name) <= 0
        ]
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas: {list(self.betas)} must be two numbers in [0, 1)")
        found += [
            f"{name}: {getattr(self, name)} must not be negative"
            for name in ("weight_decay", "warmup", "cooldown", "min_lr")
            if getattr(self, name) < 0
        ]
        for name, allowed in {"kind": KINDS, "schedule": SCHEDULES, "decay": DECAYS}.items():
            value = getattr(self, name)
            if value not in allowed:
                found.append(f"{name}: {value!r} is not one of {', '.join(allowed)}.{nearest(value, allowed)}")
        found += [f"rates.{name}: {rate} must be above 0" for name, rate in self.rates.items() if rate <= 0]
        return found + self._kind_problems() + self._schedule_problems()

    def _kind_problems(self) -> list[str]:
        found = []
        if self.kind == "adamw8bit" and find_spec("bitsandbytes") is None:
            found.append(missing("bitsandbytes", "kind: 'adamw8bit'", WITHOUT_8BIT))
        if self.momentum != OptimizerConfig.momentum and self.kind != "muon":
            found.append(f"momentum: {self.momentum} is not read with kind {self.kind!r}; only with 'muon'")
        elif not 0 <= self.momentum < 1:
            found.append(f"momentum: {self.momentum} must lie in [0, 1)")
        return found

    def _schedule_problems(self) -> list[str]:
        found = []
        if self.schedule == "cosine" and self.cooldown:
            found.append(f"cooldown: {self.cooldown} is not read with schedule 'cosine', which falls all the way")
        if self.schedule == "wsd" and not self.cooldown:
            found.append("cooldown: 0, but schedule 'wsd' ends in a fall; set its steps, often a tenth of the run")
        if self.schedule != "wsd" and self.decay != OptimizerConfig.decay:
            found.append(f"decay: {self.decay!r} is not read with schedule {self.schedule!r}; only with 'wsd'")
        if self.schedule == "constant" and self.min_lr:
            found.append(f"min_lr: {self.min_lr} is not read with schedule 'constant'; only with cosine and wsd")
        elif self.min_lr > self.lr:
            found.append(f"min_lr: {self.min_lr} must not be above lr, {self.lr}")
        return found

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the step that follows `step` finished ones, in a run of `steps`."""
        factor = 1.0
        if self.warmup:
            factor = min(factor, (step + 1) / self.warmup)
        if self.schedule == "constant":
            if self.cooldown:
                factor = min(factor, (steps - step) / self.cooldown)
            return self.lr * max(factor, 0.0)
        left = self._cosine(step, steps) if self.schedule == "cosine" else self._decay(step, steps)
        return min(self.lr * factor, self.min_lr + (self.lr - self.min_lr) * left)

    def _cosine(self, step: int, steps: int) -> float:
        """1 at the end of the warmup, 0 when all steps are done."""
        past = (step - self.warmup) / max(steps - self.warmup, 1)
        return 0.5 + 0.5 * math.cos(math.pi * min(max(past, 0.0), 1.0))

    def _decay(self, step: int, steps: int) -> float:
        """1 until the last `cooldown` steps, 0 when all steps are done."""
        past = min(max(1 - (steps - step) / self.cooldown, 0.0), 1.0)
        return 1 - (math.sqrt(past) if self.decay == "1-sqrt" else past)

    def reads_length(self) -> bool:
        """Whether the learning rate of a step depends on the length of the run, which then has to stay."""
        return self.cooldown > 0 or self.schedule == "cosine"


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
    if config.kind == "adamw8bit":
        library = need("bitsandbytes", "training.optimizer.kind: 'adamw8bit'", WITHOUT_8BIT)
        return library.optim.AdamW8bit(rated(config, trained), **_adamw_settings(config))
    if config.kind == "adamw":
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
