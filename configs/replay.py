"""One step of a run, made again in memory: the trainer as it was before it, and the batch. The run is only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.assembly import Assembly
from configs.assembly import normalization as statistics
from configs.resume import find_anew, pieces_of
from configs.schema import Config
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from core.training.config import stored_instance
from core.training.history import past, read_run, stored_config
from core.training.jsonl import read_lines
from core.training.loader import Raw
from core.training.records import RunFolder
from core.training.state import restore
from core.training.trainer import Trainer
from modalities.data.loader import StepLoader


@dataclass(frozen=True)
class Replay:
    """
    Attributes:
        trainer: after `before` finished steps, with its records in a folder of its own.
        before: finished steps.
        microbatches: of the step that follows.
        checkpoint: the step of the checkpoint that it was made from; steps between it and `before` were made again.
    """

    trainer: Trainer
    before: int
    microbatches: Sequence[Raw]
    checkpoint: int


def replay(run: Path, number: int, scratch: Path, device: str = "auto", root: Path | None = None) -> Replay:
    """
    Args:
        number: of the step, as in metrics.jsonl.
        scratch: an empty folder, for what the trainer would write into that of its run.
        root: what relative data paths start from, where there is no checkpoint that tells.

    Raises ConfigError for a step that the run cannot have made, or whose settings no checkpoint before it had.
    """
    before = number - 1
    plain = stored_config(run)
    if plain is None:
        raise ConfigError(f"{run}: holds no run (there is no config.yaml)")
    store = CheckpointStore(run / "checkpoints")
    start = next((step for step in reversed(store.steps()) if step <= before and store.problem(step) is None), None)
    if before < 0:
        raise ConfigError(f"--step {number}: must be at least 1, the number of the first step")
    if start is None and store.steps():
        raise ConfigError(f"--step {number}: no intact checkpoint before it; there are: {store.steps()}")
    periods = past(plain, read_run(run).get("changes", []))
    held = next((period.config for period in periods if period.until > before), plain)
    earlier = [period for period in periods if period.until <= before]
    if earlier and (start or 0) < earlier[-1].until:
        raise ConfigError(
            f"--step {number}: settings were changed after step {earlier[-1].until}, and the nearest checkpoint before "
            f"it is of step {start}"
        )
    config: Config = stored_instance(Config, held)
    training = config.training
    training.device, training.compile, training.workers, training.posthoc_ema.every = device, "off", 0, 0
    training.recompute = 0  # whatever looks into a block would see its forward pass twice
    stored = None if start is None else store.extra(start)
    root = Path(stored["root"]) if stored is not None else root or Path.cwd()
    assembly = Assembly(config, root, device=training.torch_device())
    assembly.earlier = pieces_of(earlier, assembly.sources)
    assembly.load_autoencoders()
    if stored is not None:
        assembly.normalization = statistics.stored(stored, assembly.adapters)
    assembly.load_text_encoder()
    trainer = Trainer(
        training,
        assembly.trunk,
        assembly.objective,
        StepLoader(assembly.dataset, 0),
        RunFolder.open(scratch, {}, {}, set()),
        {name: entry.loss_weight for name, entry in assembly.config.streams.items()},
        {},
        assembly.preprocess,
    )
    if start is not None and stored is not None:
        anew = find_anew(stored, config, assembly.projectors)
        restore(store, start, trainer.student, trainer.teacher, trainer.optimizer, anew)
    trainer.spikes.read(entry for entry in read_lines(run / "metrics.jsonl") if entry["step"] <= (start or 0))
    for step, microbatches in trainer.loader.steps(start or 0, number):
        if step == before:
            return Replay(trainer, before, microbatches, start or 0)
        if step + 1 not in training.skip_steps:
            trainer.train_step(step, microbatches)
    raise AssertionError("the loader gives every step")
