"""LoRA (arXiv 2106.09685): low-rank changes of frozen linear layers, made by peft.

Student and teacher are two modules that hold the same frozen tensors and an adapter each (core/training/ema.py). One
module with two adapters would do as well, but peft's switch of the active one flips `requires_grad`: between the
student's forward and backward passes it silently loses all gradients of the student.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import nn

from core.errors import ConfigError, nearest
from core.keys import generator
from core.optional import missing, need
from core.training.initialize import fitting

NAME = "default"  # of the adapter, in peft's names of tensors: LAYER.lora_A.default.weight
PART = re.compile(r"\.lora_[AB]\.")
BASES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WITHOUT_PEFT = "Training all weights (training.adapter: null) works"


@dataclass
class AdapterConfig:
    """
    Attributes:
        layers: patterns of the linear layers of blocks that are adapted, names with `*` or parts of them, such as
            `*.qkv`; empty for all of them.
        rank: of the change of a layer.
        alpha: the change is multiplied by alpha / rank.
        start: LoRA file, of the same layers and rank, that the adapters of a new run start from; "" for none.
        base: type in which the frozen weights are kept, fp32 or bf16. Adapters and their average are in float32.
    """

    layers: list[str] = field(default_factory=list)
    rank: int = 16
    alpha: float = 16.0
    start: str = ""
    base: str = "fp32"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def problems(self) -> list[str]:
        found = [] if self.rank >= 1 else [f"rank: {self.rank} must be at least 1"]
        if not self.alpha > 0:
            found.append(f"alpha: {self.alpha} must be above 0")
        if self.base not in BASES:
            found.append(f"base: {self.base!r} is not one of {', '.join(BASES)}.{nearest(self.base, BASES)}")
        if find_spec("peft") is None:
            found.append(missing("peft", "it", WITHOUT_PEFT))
        return found


def block_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers in blocks: what every reader of LoRA files knows."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.search(r"blocks\.\d+\.", name) and "adaLN" not in name
    ]


def adapt(model: nn.Module, config: AdapterConfig, seed: int) -> list[str]:
    """Freeze a network and give it adapters, in place; the names of the adapted layers.

    Initial adapters change nothing: A is uniform as in peft's own start, a function of seed and name, and B is 0.

    Raises:
        ConfigError: peft is missing, or a pattern fits no layer.
    """
    peft = need("peft", "training.adapter", WITHOUT_PEFT)
    known = block_layers(model)
    chosen = known
    if config.layers:
        chosen = [name for name in known if any(fitting(name, pattern) for pattern in config.layers)]
        for pattern in config.layers:
            if not any(fitting(name, pattern) for name in known):
                kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in known)
                raise ConfigError(
                    f"training.adapter.layers: {pattern!r} fits no linear layer of a block; there are "
                    f"{', '.join(kinds)}.{nearest(pattern, kinds)}"
                )
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not _is_head(name):
            parameter.data = parameter.data.to(BASES[config.base])
    meta = any(parameter.is_meta for parameter in model.parameters())
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=chosen, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):  # peft draws, too
        peft.inject_adapter_in_model(settings, model, adapter_name=NAME, low_cpu_mem_usage=meta)
    for name, parameter in model.named_parameters():
        if not PART.search(name):
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name and not meta:
            bound = parameter.shape[1] ** -0.5
            draw = torch.rand(parameter.shape, generator=generator(seed, "initialize", name))
            parameter.data.copy_((draw * 2 - 1) * bound)
        elif not meta:
            parameter.data.zero_()
    train_only(model, [])
    return chosen


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but adapters, heads of alignment terms, and those that a pattern fits.

    Raises:
        ConfigError: a pattern fits nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fitting(name, pattern) for name in names):
            parts = list(dict.fromkeys(name.split(".")[0] for name in names))
            raise ConfigError(
                f"training.trainable: {pattern!r} fits no parameter; there are {', '.join(parts)}."
                f"{nearest(pattern, parts)}"
            )
    for name, parameter in model.named_parameters():
        chosen = any(fitting(name, pattern) for pattern in patterns)
        parameter.requires_grad_(chosen or _is_head(name) or bool(PART.search(name)))


def _is_head(name: str) -> bool:
    """Whether a parameter belongs to a projector, which is new in every network that is fine-tuned."""
    return name.startswith(("projector.", "projectors."))
