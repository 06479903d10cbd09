"""Training and evaluating the runs of a study, skipping what is done."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from configs.build import build_trainer, is_finished
from configs.init_from import Initial
from configs.runs import load_run
from configs.schema import Config, StreamConfig
from modalities.evaluation.subject import trained_here
from tools.compare.plan import Run, evaluation_steps
from tools.evaluate import evaluate_run


def train(run: Run) -> bool:
    """Train to the last step, resuming. False when it was stopped by a signal."""
    if is_finished(run.config):
        return True
    initial = Initial(run.start, by_modality=True) if run.start else None
    return build_trainer(run.config, run.root, initial=initial).fit() == "finished"


def measure(run: Run, along: list[str], shared: Path) -> list[str]:
    """Evaluate the checkpoints that have no whole result yet, or that of other settings.

    Args:
        along: measures on the way; the last step gets all.
        shared: folder of the small classifiers, which all runs of a study share.

    Returns a line for every measure that failed; the others are written, and the failed ones are made the next time.
    """
    failed = []
    for step in evaluation_steps(run.config):
        last = step == run.config.training.steps
        for name, stream in run.config.streams.items():
            if not last:
                stream = replace(stream, evaluation=replace(stream.evaluation, measures=along))
            if (last or along) and not is_measured(result_path(run, step, name), stream):
                loaded = load_run(run.folder, step, run.config.training.device)
                result = evaluate_run(loaded, stream, name, run.folder / "evaluation", shared)
                failed += [f"{run.arm}, seed {run.seed}, step {step}: {each} failed" for each in result["failed"]]
    return failed + measure_elsewhere(run)


def measure_elsewhere(run: Run) -> list[str]:
    """Evaluate the last checkpoint on the held-out records of other configurations, where that is not done yet."""
    failed, step = [], run.config.training.steps
    for place, (config, root) in run.elsewhere.items():
        for name, stream in shared_streams(run, config).items():
            if not is_measured(result_path(run, step, name, place), stream):
                loaded = load_run(run.folder, step, run.config.training.device)
                loaded.assembly.root = root  # of the other's data
                result = evaluate_run(loaded, stream, name, run.folder / "evaluation" / place)
                failed += [f"{run.arm}, seed {run.seed}, {place}: {each} failed" for each in result["failed"]]
    return failed


def measure_start(start: Run, run: Run) -> list[str]:
    """Evaluate what the arms start from as they are at their last step, with the measures that need no training data,
    and on `elsewhere`."""
    failed, step = [], start.config.training.steps
    for name, stream in shared_streams(start, run.config).items():
        networks = [network for network in stream.evaluation.networks if not trained_here(network)]
        wanted = ["velocity", "samples"] if networks else ["velocity"]
        measures = [each for each in wanted if each in (stream.evaluation.measures or wanted)]
        stream = replace(stream, evaluation=replace(stream.evaluation, measures=measures, networks=networks))
        if measures and not is_measured(result_path(start, step, name), stream):
            loaded = load_run(start.folder, step, run.config.training.device)
            loaded.assembly.root = run.root
            result = evaluate_run(loaded, stream, name, start.folder / "evaluation")
            failed += [f"{start.arm}: {each} failed" for each in result["failed"]]
    return failed + measure_elsewhere(start)


def shared_streams(run: Run, config: Config) -> dict[str, StreamConfig]:
    """Those of another configuration that the run has too, and that have held-out records."""
    return {name: stream for name, stream in config.streams.items() if stream.val and name in run.config.streams}


def result_path(run: Run, step: int, stream: str, place: str = "") -> Path:
    return run.folder / "evaluation" / place / f"step-{step:08d}-{stream}.json"


def is_measured(path: Path, stream: StreamConfig) -> bool:
    """Whether a whole result is there and was made with these settings, as far as its version knew them."""
    made = read_result(path)
    if made is None or made.get("failed"):
        return False
    wanted = json.loads(json.dumps({"settings": asdict(stream.evaluation), "sampler": asdict(stream.sampling)}))
    return all(
        value == made[section][name]
        for section, values in wanted.items()
        for name, value in values.items()
        if name in made[section]
    )


def read_result(path: Path) -> dict | None:
    """None where there is none, or a damaged one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def evaluations(run: Run) -> dict[int, dict[str, dict]]:
    """step -> stream -> content of the result, of those that are there."""
    found: dict[int, dict[str, dict]] = {}
    for step in evaluation_steps(run.config):
        for stream in run.config.streams:
            result = read_result(result_path(run, step, stream))
            if result is not None:
                found.setdefault(step, {})[stream] = result
    return found


def values(run: Run) -> dict[int, dict[str, float]]:
    """step -> values; those of a run of several streams under STREAM/NAME, those made elsewhere under PLACE/..."""
    several = len(run.config.streams) > 1

    def named(by_stream: dict[str, dict], under: str = "") -> dict[str, float]:
        return {
            f"{under}{stream}/{name}" if several else f"{under}{name}": value
            for stream, result in by_stream.items()
            for name, value in result["values"].items()
        }

    found = {step: named(by_stream) for step, by_stream in evaluations(run).items()}
    last = run.config.training.steps
    for place, (config, _) in run.elsewhere.items():
        made = {name: read_result(result_path(run, last, name, place)) for name in shared_streams(run, config)}
        told = {name: result for name, result in made.items() if result is not None}
        if told:
            found.setdefault(last, {}).update(named(told, f"{place}/"))
    return found
