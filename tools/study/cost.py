"""What an arm costs, counted before it is trained; whatever training or measuring would refuse is refused here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from configs.build import build_dataset, build_streams, class_names, known_whitening, measure_all
from configs.networks import (
    build_adapters,
    build_encoders,
    build_trunk,
    device_preprocess,
    encoding_adapters,
    load_autoencoders,
    projector_specs,
)
from configs.runs import LoadedRun
from core.alignment.terms import build_alignment
from core.errors import ConfigError
from core.objective import Objective
from modalities.conditions import Conditions
from modalities.evaluation.subject import Subject, trained_here
from modalities.generation import Generator
from modalities.metrics.networks import build_network
from tools.evaluate import prepare as prepare_evaluation
from tools.flops import step_flops
from tools.plan import first_batch
from tools.study.plan import Run

NAME = "cost.json"
PARTS_OF_A_STEP = ("student", "teacher", "encoders", "total")


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        parameters: of the student, its projectors included.
        flops: student, teacher, encoders and total, of an average step: modalities count by their share of the steps.
        data: modality -> its training and held-out records, in words.
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
    config, device = run.config, torch.device("cpu")
    adapters = build_adapters(config, run.root)
    streams = build_streams(config, adapters, run.root)
    labels, encoders = class_names(streams), build_encoders(config, adapters, run.root)
    with torch.device("meta"):
        trunk = build_trunk(config, adapters, labels, projector_specs(config, encoders))
    load_autoencoders(encoding_adapters(config, adapters))
    whitening = known_whitening(run.folder, adapters) or measure_all(config, streams)
    dataset = build_dataset(config, streams, labels)
    parts = {name: stream.parts for name, stream in streams.items()}
    generator = Generator(trunk, parts, whitening, Conditions(config.condition, labels), device)
    loaded = LoadedRun(config, generator, 0, run.root, run.folder)
    objective = Objective(build_alignment(config.alignment, trunk.depth))
    preprocess = device_preprocess(parts, whitening, encoders, device)

    entries = config.streams
    shares = sum(entry.share for entry in entries.values())
    flops: dict[str, float] = {}
    data = {}
    for name, entry in entries.items():
        subject = check_measures(loaded, name, along)
        source = Path(entry.data.path).name or entry.data.kind
        data[name] = f"{source}, {len(subject.training):,} records to train on and {len(subject.heldout):,} held out"
        for part, count in step_flops(objective, trunk, first_batch(dataset, name), preprocess).items():
            flops[part] = flops.get(part, 0.0) + config.training.accumulate * entry.share / shares * count
    return Cost(sum(parameter.numel() for parameter in trunk.parameters()), flops, data)


def check_measures(loaded: LoadedRun, modality: str, along: list[str]) -> Subject:
    """The subject of the evaluation, when its data allow all measures and the weights of its networks are there."""
    stream = loaded.config.streams[modality]
    job = prepare_evaluation(loaded, stream, modality)
    if along:
        settings = replace(stream.evaluation, measures=along)
        if found := settings.problems():
            raise ConfigError(f"streams.{modality}.evaluation.{line}" for line in found)
        prepare_evaluation(loaded, replace(stream, evaluation=settings), modality)
    for network in stream.evaluation.networks if "samples" in (*job.measures, *along) else []:
        if not trained_here(network):
            build_network(network, modality, sample_rate=job.subject.sample_rate, root=loaded.root)
    return job.subject
