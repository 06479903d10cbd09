"""The section `training` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from core.errors import ConfigError
from core.kinds import kinds
from core.training.adapter import AdapterConfig
from core.training.ema import EmaConfig
from core.training.hooks import PreviewConfig, ValidateConfig
from core.training.optim import OPTIMIZERS, OptimizerConfig
from core.training.posthoc_ema import PosthocEmaConfig
from core.training.spikes import SpikesConfig
from core.training.watchdog import WatchdogConfig


@dataclass
class TrainingConfig:
    """
    Attributes:
        steps: optimizer steps of the whole run.
        accumulate: microbatches per optimizer step and device; each holds `batch / (accumulate devices)` samples.
        save_every: steps between checkpoints; one is always published at the end and on a stop.
        async_save: write checkpoints while the training goes on, from a copy of the state in the host's memory.
        checkpoint_store: URL of a folder in an object store, which gets a copy of every checkpoint and of what a new
            run folder needs to go on from it; empty for none.
        keep: how many of the newest checkpoints stay.
        keep_every: a checkpoint is also published at every multiple of this, and stays forever; 0 for none.
        replicas: of several devices, how many groups hold a copy of all weights each, sharded within the group; must
            divide their number. 1 shards over all of them.
        precision: fp32, or bf16 (autocast, and FSDP's policy on several devices; weights, EMA, losses and cosine stay
            float32).
        compile: the blocks of student and teacher with torch.compile: on, off (or true, false), or auto: on one device
            with a compiler, where the run is long enough to win the compilation back; a run goes on as it began.
        recompute: of every so many blocks of the student, the last is computed again in the backward pass instead of
            being kept: 1 all blocks, 2 half of them; 0 none. Saves memory, costs time, changes no number.
        device: auto (cuda if there is one, else cpu), cpu or cuda.
        workers: processes that prepare batches; 0 prepares them in the training process.
        data_limit: distinct unusable records after which the run stops.
        trainable: patterns of names (a part of the network, or with `*`) of the weights that are trained, beside
            adapters and the heads of alignment terms; empty for all, or with an adapter for none.
        adapter: low-rank changes of frozen weights (LoRA); null trains the weights themselves.
        skip_steps: steps, by their number in metrics.jsonl, that are left out: their data are consumed and nothing is
            updated. May grow when a run is resumed.
        stop_within: seconds from a request to stop until its checkpoint is begun; a step that takes longer is lost.
        compare_ranks_every: of several processes, steps between two lines of RUN/ranks.jsonl; 0 for none.
    """

    steps: int = 1000
    accumulate: int = 1
    save_every: int = 1000
    async_save: bool = False
    checkpoint_store: str = ""
    keep: int = 2
    keep_every: int = 0
    replicas: int = 1
    precision: str = "fp32"
    compile: str = "auto"
    recompute: int = 0
    device: str = "auto"
    workers: int = 0
    data_limit: int = 100
    skip_steps: list[int] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)
    adapter: AdapterConfig | None = None
    stop_within: float = 20.0
    compare_ranks_every: int = 100
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    optimizer: OptimizerConfig = field(
        default_factory=OptimizerConfig, metadata=kinds(OPTIMIZERS, ("kind", "schedule"), keeps=True)
    )
    ema: EmaConfig = field(default_factory=EmaConfig)
    posthoc_ema: PosthocEmaConfig = field(default_factory=PosthocEmaConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)

    def __post_init__(self):
        words = {"true": "on", "false": "off"}  # what it was in earlier versions
        self.compile = words.get(str(self.compile).lower(), self.compile)

    def problems(self) -> list[str]:
        found = []
        for name, least in {
            "steps": 1,
            "accumulate": 1,
            "replicas": 1,
            "save_every": 1,
            "keep": 2,
            "keep_every": 0,
            "recompute": 0,
            "workers": 0,
            "data_limit": 0,
            "compare_ranks_every": 0,
            "stop_within": 1,
        }.items():
            if getattr(self, name) < least:
                found.append(f"{name}: {getattr(self, name)} must be at least {least}")
        if wrong := [step for step in self.skip_steps if step < 1]:
            found.append(f"skip_steps: {wrong[0]} must be at least 1, the number of the first step")
        for name, allowed in {
            "precision": ("fp32", "bf16"),
            "compile": ("auto", "on", "off"),
            "device": ("auto", "cpu", "cuda"),
        }.items():
            if getattr(self, name) not in allowed:
                found.append(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        return found

    def torch_device(self) -> torch.device:
        """The device to train on; raises ConfigError when cuda is asked for and missing."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("training.device: 'cuda' was asked for, but torch sees no GPU; allowed: auto, cpu")
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(wanted)
