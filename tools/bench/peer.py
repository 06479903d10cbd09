"""The other side: the official Self-Flow network in a checkout of its repository, in plain loops written here.

The repository has the network and its sampler and no training code. Its files are imported from where they lie;
nothing of them is copied.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.methods import method_alignment
from core.errors import ConfigError, nearest
from core.training.ema import EmaConfig
from core.training.loader import Microbatch
from core.training.optim import OptimizerConfig
from core.trunk.sit import SiT
from tools.bench.sides import Setup

MODEL, SAMPLING = Path("src/model.py"), Path("src/sampling.py")
CLASS, LOOP = "SelfFlowPerTokenDiT", "denoise_loop"


class Peer:
    """
    Args:
        folder: a checkout of the official repository.

    Raises:
        ConfigError: it is none, or cannot be imported here (it needs timm and einops).
    """

    def __init__(self, folder: Path):
        self.network = _member(folder, MODEL, CLASS)
        self.denoise_loop = _member(folder, SAMPLING, LOOP)

    def build(self, trunk: SiT, device: str) -> Any:
        """The official network with the weights of ours, loaded strictly."""
        config = trunk.config
        network = self.network(
            input_size=config.grid * config.patch,
            patch_size=config.patch,
            in_channels=config.channels // config.patch**2,
            hidden_size=trunk.width,
            depth=trunk.depth,
            num_heads=config.shape().heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=config.num_classes,
            learn_sigma=config.learn_sigma,
        )
        network.load_state_dict(trunk.state_dict(), strict=True)
        return network.to(device)

    def sampler(
        self, network: Any, noise: Tensor, label: Tensor, steps: int, guidance: float, high: float, seed: int
    ) -> Callable[[], Tensor]:
        """The official SDE loop from `noise` (B, N, C): with guidance both halves run on every step, null half first.

        Increments are drawn from torch's global generator, seeded here; `increments` draws the same ones.
        """
        x, vector = noise, label
        if guidance != 1:
            null = torch.full_like(label, network.y_embedder.embedding_table.num_embeddings - 1)
            x, vector = torch.cat([noise, noise]), torch.cat([null, label])

        def run() -> Tensor:
            torch.manual_seed(seed)
            scale = {"cfg_scale": guidance, "guidance_low": 0.0, "guidance_high": high}
            with torch.no_grad():
                made = self.denoise_loop(model=network, num_steps=steps, mode="SDE", x=x, vector=vector, **scale)
            return made[-len(noise) :]

        return run


def increments(shape: torch.Size, guided: bool, steps: int, seed: int) -> list[Tensor]:
    """The unit normals that the official loop gives the conditional half, step by step."""
    torch.manual_seed(seed)
    batch = shape[0]
    return [torch.randn(batch * (1 + guided), *shape[1:])[-batch:] for _ in range(steps - 1)]


def training_step(setup: Setup, network: Any, microbatch: Microbatch) -> Callable[[], float]:
    """Self-Flow on the official class as one would write it: one time per token, a full teacher pass (the class has no
    earlier way out), AdamW as torch has it by default, and the EMA as a loop over parameters."""
    alignment, optimizer_config = method_alignment("self_flow").ema_teacher, OptimizerConfig()
    assert alignment is not None  # of this method
    layer, teacher_layer = alignment.layers(len(network.blocks))
    network.train()
    teacher = copy.deepcopy(network).eval().requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=optimizer_config.lr, weight_decay=optimizer_config.weight_decay)
    if setup.compile:
        network.compile()
        teacher.compile()

    moved = microbatch.to(torch.device(setup.device))
    (segment,), (x1,), levels = moved.batch.segments, moved.drawn.noise, moved.drawn.student
    x0, label = segment.x0, moved.batch.context.label
    t, s = levels.values.unbind(1)  # (B,) each
    assert levels.index is not None  # two levels in every sample
    mask = levels.index.bool()  # (B, N), True where the token has s

    def step() -> float:
        tau = torch.where(mask, s[:, None], t[:, None])
        cleaner = torch.minimum(t, s)
        seen = (1 - tau[..., None]) * x0 + tau[..., None] * x1
        seen_by_teacher = (1 - cleaner[:, None, None]) * x0 + cleaner[:, None, None] * x1
        with setup.autocast():
            velocity, projected = network(seen, tau, label, return_features=layer)
            with torch.no_grad():
                _, target = teacher(seen_by_teacher, cleaner, label, return_raw_features=teacher_layer)
            similarity = F.cosine_similarity(projected.float(), target.float(), dim=-1)
            loss = F.mse_loss(velocity.float(), x1 - x0) + alignment.weight * (1 - similarity).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, optimizer_config.clip)
        optimizer.step()
        decay = EmaConfig().decay
        with torch.no_grad():
            for kept, current in zip(teacher.parameters(), network.parameters(), strict=True):
                kept.mul_(decay).add_(current, alpha=1 - decay)
        return loss.item()

    return step


def _member(folder: Path, file: Path, name: str):
    """What `file` of the checkout calls `name`."""
    module = _load(folder, file)
    if not hasattr(module, name):
        names = [item for item in vars(module) if not item.startswith("_")]
        raise ConfigError(f"--peer: {folder / file} has no {name}.{nearest(name, names)}")
    return getattr(module, name)


def _load(folder: Path, file: Path) -> ModuleType:
    path = folder / file
    if not path.is_file():
        raise ConfigError(f"--peer: {folder} has no {file}; expected a checkout of the official Self-Flow repository")
    # By file and under a name of its own: the package there is called `src`, which could be anything.
    name = f"official_selfflow_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of a file in Python
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--peer: {path} needs the package {error.name}, which is not installed (pip install {error.name})"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--peer: {path} cannot be imported here: {reason}") from error
    return module
