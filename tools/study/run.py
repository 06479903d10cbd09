"""Training and evaluating the runs of a study, skipping what is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from configs.build import (
    build_adapters,
    build_dataset,
    build_encoders,
    build_streams,
    build_trainer,
    build_trunk,
    class_names,
    device_prepare,
    is_finished,
    known_whitening,
    load_run,
    projector_specs,
)
from core.alignment.terms import build_alignment
from core.objective import Objective
from tools.dry_run import first_microbatch
from tools.evaluate import evaluate_run
from tools.flops import step_flops
from tools.study.plan import Run, evaluation_steps


def train(run: Run) -> bool:
    """Train to the last step, resuming. False when it was stopped by a signal."""
    if is_finished(run.config):
        return True
    return build_trainer(run.config, run.root).fit() == "finished"


def measure(run: Run, along: list[str], shared: Path) -> None:
    """Evaluate the checkpoints that have no result yet. Classifiers are trained once, into `shared`."""
    for step in evaluation_steps(run.config):
        measures = None if step == run.config.training.steps else along
        for modality, stream in run.config.modalities.streams().items():
            if result_path(run, step, modality).exists() or measures == []:
                continue
            settings = stream.evaluation if measures is None else replace(stream.evaluation, measures=measures)
            loaded = load_run(run.folder, step, run.config.training.device)
            evaluate_run(loaded, replace(stream, evaluation=settings), modality, run.folder / "evaluation", shared)


def result_path(run: Run, step: int, modality: str) -> Path:
    return run.folder / "evaluation" / f"step-{step:08d}-{modality}.json"


def results(run: Run) -> dict[int, dict[str, float]]:
    """step -> values; those of a run of several modalities under MODALITY/NAME. Steps without results are left out."""
    found: dict[int, dict[str, float]] = {}
    streams = run.config.modalities.streams()
    for step in evaluation_steps(run.config):
        for modality in streams:
            path = result_path(run, step, modality)
            if path.exists():
                prefix = "" if len(streams) == 1 else f"{modality}/"
                values = json.loads(path.read_text())["values"]
                found.setdefault(step, {}).update({prefix + name: value for name, value in values.items()})
    return found


def flops(run: Run) -> dict[str, float]:
    """FLOPs of an average step: student, teacher, encoders, total. Modalities count by their share of the steps."""
    config = run.config
    adapters = build_adapters(config, run.root)
    streams = build_streams(config, adapters, run.root)
    labels, encoders = class_names(streams), build_encoders(config, adapters, run.root)
    trunk = build_trunk(config, adapters, labels, projector_specs(config, encoders))
    whitening = known_whitening(run.folder, adapters)
    dataset = build_dataset(config, streams, whitening, labels)
    objective = Objective(build_alignment(config.alignment, trunk.depth))
    prepare = device_prepare(adapters, whitening, encoders, config.training.torch_device())
    entries = config.modalities.streams()
    shares = sum(entry.share for entry in entries.values())
    total: dict[str, float] = {}
    for name, entry in entries.items():
        counted = step_flops(objective, trunk, first_microbatch(dataset, name), prepare)
        for part, value in counted.items():
            weight = config.training.accumulate * entry.share / shares
            total[part] = total.get(part, 0.0) + weight * value
    return total
