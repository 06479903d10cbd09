"""AdamW with the REPA set-up's values, and the learning rate as a function of the step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class OptimizerConfig:
    """
    Attributes:
        lr, betas, eps, weight_decay: of AdamW; the defaults are REPA's, which the ImageNet runs follow.
        clip: largest global gradient norm.
        warmup: steps of linear rise from 0; cooldown: steps of linear fall to 0 at the end of the run.
    """

    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 0
    cooldown: int = 0

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
            for name in ("weight_decay", "warmup", "cooldown")
            if getattr(self, name) < 0
        ]
        return found

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the step that follows `step` finished ones, in a run of `steps`."""
        factor = 1.0
        if self.warmup:
            factor = min(factor, (step + 1) / self.warmup)
        if self.cooldown:
            factor = min(factor, (steps - step) / self.cooldown)
        return self.lr * max(factor, 0.0)


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters: four times cheaper than the other forms, on CPU too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
