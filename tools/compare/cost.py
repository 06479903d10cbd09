"""What an arm costs, counted before it is trained; whatever training or measuring would refuse is refused here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs.assembly import Assembly
from configs.assembly import normalization as normalization
from configs.buckets import step_shares
from configs.runs import LoadedRun
from core.errors import ConfigError
from core.training.checkpoint import CheckpointStore
from modalities.evaluation.networks.chosen import parts_of, stored_network
from modalities.evaluation.subject import Subject, trained_here
from tools.compare.plan import Run
from tools.dry_run.flops import step_flops
from tools.dry_run.plan import first_batch, leave_empty
from tools.evaluate import prepare as prepare_evaluation

NAME = "cost.json"
PARTS_OF_A_STEP = ("student", "teacher", "encoders", "total")


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the student, its projectors included.
        flops: student, teacher, encoders and total, of an average step: streams count by their share of the steps.
        data: stream -> its training and held-out records, in words.
    """

    parameters: int
    flops: dict[str, float]
    data: dict[str, str]

    def save(self, folder: Path) -> None:
        """For a report where the arm's data and weights are not."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Cost | None:
        return Cost(**json.loads((folder / NAME).read_text())) if (folder / NAME).exists() else None


def cost(run: Run, along: list[str]) -> Cost:
    """Build everything of a run but the weights of its trunk, and count.

    Raises the errors that training would raise before its first step, and those of the measures.
    """
    config, assembly = run.config, Assembly(run.config, run.root)
    assembly.load_autoencoders()
    if stored := newest(run.folder):
        assembly.normalization = normalization.stored(stored, assembly.adapters)
    leave_empty(assembly)
    loaded = LoadedRun(assembly, 0, run.folder)

    entries, weights = assembly.config.streams, step_shares(assembly.config, assembly.sources)
    shares = sum(weights.values())
    flops: dict[str, float] = {}
    data = {}
    for name, entry in entries.items():
        subject = check_measures(loaded, name, along)
        source = entry.data.name or entry.data.kind
        data[name] = f"{source}, {len(subject.training):,} records to train on and {len(subject.val):,} held out"
        batch = first_batch(assembly.dataset, name)
        for part, count in step_flops(assembly.objective, assembly.trunk, batch, assembly.preprocess).items():
            flops[part] = flops.get(part, 0.0) + config.training.accumulate * weights[name] / shares * count
    return Cost(sum(parameter.numel() for parameter in assembly.trunk.parameters()), flops, data)


def newest(run: Path) -> dict | None:
    """What is stored besides the tensors of a run's newest checkpoint; None for a new run."""
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    return None if step is None else store.extra(step)


def check_measures(loaded: LoadedRun, name: str, along: list[str]) -> Subject:
    """The subject of the evaluation, when its data allow all measures and the weights of its networks are there."""
    stream = loaded.config.streams[name]
    job = prepare_evaluation(loaded, stream, name)
    if along:
        settings = replace(stream.evaluation, measures=along)
        if found := settings.problems():
            raise ConfigError(f"streams.{name}.evaluation.{line}" for line in found)
        prepare_evaluation(loaded, replace(stream, evaluation=settings), name)
    for network in stream.evaluation.networks if "samples" in (*job.measures, *along) else []:
        if not trained_here(network):
            for part in parts_of(job.subject, network, loaded.root):
                stored_network(job.subject, network, part, loaded.root)
    return job.subject
