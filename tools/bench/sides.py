"""Our side of every comparison: trunks, one fixed microbatch, and the Trainer's own step on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from configs.methods import METHODS, method_alignment
from core.alignment.terms import build_alignment
from core.errors import nearest
from core.keys import generator
from core.noising import NoiseSample, NoisingConfig, draw_levels, stack_levels
from core.objective import Objective
from core.schedule import TimestepConfig
from core.training.loader import Microbatch
from core.training.records import RunFolder
from core.training.trainer import Trainer
from core.training.training_config import TrainingConfig
from core.trunk import mmdit, sit
from core.trunk.context import ContextConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.types import Context, Segment, TokenBatch
from modalities.generation import Trunk

MMDIT_CHANNELS = 128  # a 2x2 patch of the FLUX.2 autoencoder's 32
TINY = sit.Size(width=64, depth=4, heads=4)  # for tests and trials; the published sizes begin at S
TINY_MMDIT: dict[str, Any] = {"width": MMDIT_CHANNELS, "heads": 4, "double_blocks": 1, "single_blocks": 2}
CLASSES = 1000
MASK_RATIO = 0.25  # of images (paper A.3)
Network = TypeVar("Network", bound=nn.Module)
HEADS = {TEACHER: ProjectorSpec()}  # that of the released weights


@dataclass(frozen=True)
class Setup:
    """What every section is measured with.

    Attributes:
        size: tiny, or a name of `sit.SIZES`.
        batch: samples of a step or of a sampling run.
        grid: tokens per side, so that a sample has grid^2.
        rounds, warmup: counted rounds, and rounds before them.
        steps: of the sampler.
        device, precision, compile, recompute: as in TrainingConfig.
        threads: of torch, on the CPU.
        cpu_time: count the time of this process, over all its threads, and not that of the clock.
    """

    size: str = "S"
    batch: int = 8
    grid: int = 16
    rounds: int = 10
    warmup: int = 2
    steps: int = 12
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    recompute: int = 0
    threads: int = 2
    cpu_time: bool = False

    def problems(self) -> list[str]:
        found = []
        if self.size != "tiny" and self.size not in sit.SIZES:
            allowed = ["tiny", *sit.SIZES]
            found.append(f"--size: {self.size!r} is not one of {', '.join(allowed)}.{nearest(self.size, allowed)}")
        for name, least in {
            "batch": 1,
            "grid": 1,
            "rounds": 1,
            "warmup": 0,
            "steps": 2,
            "threads": 1,
            "recompute": 0,
        }.items():
            if getattr(self, name) < least:
                found.append(f"--{name}: {getattr(self, name)} must be at least {least}")
        if self.cpu_time and self.device == "cuda":
            found.append("--cpu-time: a GPU has a clock of its own; leave it out")
        if self.device == "cuda" and not torch.cuda.is_available():
            found.append("--device: 'cuda' was asked for, but torch sees no GPU; allowed: cpu")
        return found

    @property
    def tokens(self) -> int:
        return self.grid**2

    def clock(self) -> float:
        return time.process_time() if self.cpu_time else time.perf_counter()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def sit_config(setup: Setup) -> sit.SiTConfig:
    if setup.size == "tiny":
        return sit.SiTConfig(**TINY._asdict(), grid=setup.grid, num_classes=CLASSES + 1)
    return sit.SiTConfig(size=setup.size, grid=setup.grid, num_classes=CLASSES + 1)


def build_sit(setup: Setup) -> sit.SiT:
    """Initial weights, but with small normal numbers where they start at zero: a network whose blocks are the identity
    and whose velocity is 0 would agree with any other."""
    return filled(sit.SiT(sit_config(setup), projectors=HEADS))


@torch.no_grad()
def filled(trunk: Network) -> Network:
    """Replace parameters that are all zero by normal ones of deviation 0.02."""
    for name, parameter in trunk.named_parameters():
        if not parameter.any():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("bench", "fill", name)) * 0.02)
    return trunk


def trunk_config(name: str, setup: Setup, text_tokens: int) -> tuple[type[sit.SiT] | type[mmdit.MMDiT], Any, int]:
    """`kind:size` -> (class of the trunk, its configuration, channels C).

    The MMDiT reads features of a frozen encoder, or with `text_tokens` 0 a class like the SiT.
    """
    kind, _, size = name.partition(":")
    if kind == "sit":
        config = sit_config(replace(setup, size=size))
        return sit.SiT, config, config.channels
    reader = ContextConfig("features" if text_tokens else "labels", num_classes=CLASSES)
    config = mmdit.MMDiTConfig(channels={"image": MMDIT_CHANNELS}, context=reader)
    config = replace(config, **TINY_MMDIT if size == "tiny" else {"size": size})
    return mmdit.MMDiT, config, MMDIT_CHANNELS


def trunk_problem(name: str) -> str | None:
    """What is wrong with `kind:size`, or None."""
    sizes = {"sit": ["tiny", *sit.SIZES], "mmdit": ["tiny", *mmdit.SIZES]}
    kind, _, size = name.partition(":")
    if kind not in sizes:
        return f"--trunk: {name!r} must be mmdit:SIZE or sit:SIZE"
    if size not in sizes[kind]:
        return f"--trunk: {size!r} is not one of {', '.join(sizes[kind])}.{nearest(size, sizes[kind])}"
    return None


def class_context(setup: Setup) -> Context:
    label = torch.randint(CLASSES, (setup.batch,), generator=generator("bench", "label"))
    return Context(torch.zeros(setup.batch, dtype=torch.bool), label)


def text_context(setup: Setup, text_tokens: int) -> Context:
    """Features of a frozen encoder, under a mask as captions of several lengths need it; all of them are real."""
    shape = (setup.batch, text_tokens, ContextConfig().feature_dim)
    features = torch.randn(shape, generator=generator("bench", "text"))
    dropped = torch.zeros(setup.batch, dtype=torch.bool)
    return Context(dropped, tokens=features, valid=torch.ones(shape[:2], dtype=torch.bool))


def make_microbatch(setup: Setup, method: str, channels: int, context: Context) -> Microbatch:
    """Normal tokens, with the levels that the method's row of the table draws; equal for equal arguments."""
    shape = (setup.batch, setup.tokens, channels)
    x0, x1 = (torch.randn(shape, generator=generator("bench", purpose)) for purpose in ("data", "noise"))
    h, w = torch.meshgrid(torch.arange(setup.grid), torch.arange(setup.grid), indexing="ij")
    ids = torch.stack([torch.zeros_like(h), h, w], dim=-1).flatten(0, 1)[None]  # (1, N, 3)
    noising = NoisingConfig(**METHODS[method]["noising"])
    pairs = [
        draw_levels(noising, TimestepConfig(), MASK_RATIO, [setup.tokens], generator("bench", "levels", i))
        for i in range(setup.batch)
    ]
    student, teacher = (stack_levels(list(levels)) for levels in zip(*pairs, strict=True))
    keys = tuple(f"bench/{i}" for i in range(setup.batch))
    batch = TokenBatch((Segment("image", x0, ids),), context, keys)
    return Microbatch(
        "image", batch, NoiseSample((x1,), student, teacher), {"image": float(setup.batch * setup.tokens)}
    )


class Repeat:
    """A loader that gives one microbatch forever."""

    def __init__(self, microbatch: Microbatch):
        self.microbatches = [microbatch]

    def steps(self, first: int, last: int):
        for step in range(first, last):
            yield step, self.microbatches


def build_trainer(setup: Setup, trunk: Trunk, method: str, microbatch: Microbatch, folder: Path) -> Trainer:
    """The trainer of real runs, with its default optimizer, video and EMA; it owns (and trains) the given trunk."""
    config = TrainingConfig(steps=1, device=setup.device, precision=setup.precision, recompute=setup.recompute)
    objective = Objective(build_alignment(method_alignment(method), trunk.depth))
    run = RunFolder.open(folder, {}, {}, set())
    return Trainer(config, trunk, objective, Repeat(microbatch), run, {"image": 1.0}, {}, compiled=setup.compile)


def microbatch_of(trainer: Trainer) -> Microbatch:
    """The one that `build_trainer` was given."""
    assert isinstance(trainer.loader, Repeat)
    return trainer.loader.microbatches[0]


def step_of(trainer: Trainer) -> Callable[[], float]:
    """One whole optimizer step on the loader's microbatch; returns the loss before it."""

    def step() -> float:
        number, microbatches = next(trainer.loader.steps(0, 1))
        return float(trainer.train_step(number, microbatches)["loss"])

    return step
