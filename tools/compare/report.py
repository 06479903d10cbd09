"""The report of a study: JSON for programs, Markdown for people, figures for both axes."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.errors import nearest
from core.training.records import read_lines
from tools.compare.cost import PARTS_OF_A_STEP, Cost
from tools.compare.figures import draw, draw_differences
from tools.compare.plan import Run, Study
from tools.compare.run import evaluations, values
from tools.compare.summary import Estimate, Results, difference, over_seeds, verdict


@dataclass(frozen=True)
class Found:
    """What the runs of a study say.

    Attributes:
        steps: of every run.
        results: values of the evaluations.
        costs: by arm.
        seconds: arm -> median of a training step.
        about: what a reader needs to know to repeat the numbers, by name.
        warnings: of the measurements.
        start: values of what the arms start from.
    """

    steps: int
    results: Results
    costs: dict[str, Cost]
    seconds: dict[str, float]
    about: dict[str, str]
    warnings: list[str]
    start: dict[str, float] = field(default_factory=dict)


def write_report(
    study: Study,
    runs: list[Run],
    costs: dict[str, Cost],
    out: Path,
    command: str,
    failed: list[str] | None = None,
    start: Run | None = None,
) -> Path:
    """results.json, report.md and one figure for each metric in `out`; returns the Markdown file.

    Args:
        runs: that were started, of any arms and seeds of the study.
        command: what repeats them.
        failed: lines about runs and measures that failed; they stand among the warnings.
        start: the run that all of them start from.
    """
    found = collect(runs, costs, command)
    found.warnings[:0] = failed or []
    if start is not None:
        found.start.update(values(start).get(start.config.training.steps, {}))
    plain = {
        "title": study.title,
        "steps": found.steps,
        "seeds": study.seeds,
        "arms": study.arms,
        **({"start": found.start} if study.start else {}),
        "about": found.about,
        "costs": {arm: asdict(one) for arm, one in costs.items()},
        "median_seconds_per_step": found.seconds,
        "results": found.results,
        "summary": summary(study, found),
        "warnings": found.warnings,
    }
    (out / "results.json").write_text(json.dumps(plain, indent=1) + "\n")
    figures = draw(study, found.results, {arm: one.flops["total"] for arm, one in costs.items()}, out)
    differences = draw_differences(study, found.results, found.steps, out)
    path = out / "report.md"
    path.write_text("\n".join(markdown(study, found, figures, differences)) + "\n")
    return path


def collect(runs: list[Run], costs: dict[str, Cost], command: str) -> Found:
    """Everything that lies in the folders of the runs."""
    results: Results = {arm: {} for arm in dict.fromkeys(run.arm for run in runs)}
    seconds: dict[str, list[float]] = {arm: [] for arm in results}
    measured: dict[str, dict[str, Any]] = {}
    starts, warnings = [], []
    for run in runs:
        results[run.arm][run.seed] = values(run)
        seconds[run.arm] += [entry["seconds"] for entry in read_lines(run.folder / "timings.jsonl")]
        starts += json.loads((run.folder / "run.json").read_text())["starts"]
        for by_stream in evaluations(run).values():
            for stream, result in by_stream.items():
                measured.setdefault(stream, {}).update(result if result["networks"] else {})
                warnings += result["warnings"]
    about = {"command": f"`{command}`"}
    about |= {stream: text for cost in costs.values() for stream, text in cost.data.items()}
    for stream, result in measured.items():
        about[stream] += sampling_text(result)
    about["machine"] = machine()
    for name in ("python", "torch"):
        about[name] = _all(start["versions"][name] for start in starts)
    about["commit"] = _all(
        start.get("commit", "unknown")[:12] + (" with changes" if start.get("dirty") else "") for start in starts
    )
    times = {arm: statistics.median(each) for arm, each in seconds.items() if each}
    return Found(runs[0].config.training.steps, results, costs, times, about, list(dict.fromkeys(warnings)))


def sampling_text(result: dict[str, Any]) -> str:
    """How the samples of an evaluation were made."""
    if not result:
        return ""
    settings, sampler = result["settings"], result["sampler"]
    return (
        f"; {settings['generated']:,} samples ({sampler['solver']}, {sampler['steps']} steps, guidance "
        f"{sampler['cfg_scale']:g}) and as many held-out records through {', '.join(result['networks'].values())}; "
        f"other measures on {result['records']['val']['used']:,} held-out records"
    )


def summary(study: Study, found: Found) -> dict[str, dict[str, dict[str, Any]]]:
    """metric -> arm -> value and difference to the first arm, at the last step."""
    told = {}
    for metric, better in study.metrics.items():
        for arm in found.results:
            value = over_seeds(found.results, arm, found.steps, metric)
            if value is None:
                continue
            entry = told.setdefault(metric, {}).setdefault(arm, {"value": asdict(value)})
            reference = study.reference(arm)
            if reference is not None and reference in found.results:
                change = difference(found.results, arm, reference, found.steps, metric)
                entry |= {"difference": change and asdict(change), "verdict": verdict(change, better)}
    return told


def markdown(study: Study, found: Found, figures: dict[str, str], differences: str | None) -> list[str]:
    reference, told = next(iter(study.arms)), summary(study, found)
    lines = [f"# {study.title or study.config}", "", study.about.strip(), ""]
    lines += [f"- {name}: {text}" for name, text in found.about.items()]
    compared = sum("verdict" in entry for by_arm in told.values() for entry in by_arm.values())
    lines += [
        "",
        f"{found.steps:,} steps of each arm with each of {len(study.seeds)} seeds{from_where(study)}. Values are means "
        "over seeds with "
        "95 % intervals (Student's t). Differences are taken seed by seed: arms of one seed share initial weights, "
        f"data and noise. *better* and *worse*: the interval of the difference to {to_what(study)} leaves out 0; "
        f"*unclear*: it does not. By chance alone about one in twenty leaves it out; {compared} are shown.",
        *missing(study, found),
        *cost_table(study, found),
        *(["", f"![Differences]({differences})"] if differences else []),
    ]
    for metric, better in study.metrics.items():
        lines += ["", f"## {study.labels.get(metric, metric)} ({better} is better)", ""]
        if metric not in told:
            lines.append(absent(metric, found))
            continue
        minus = f"minus {reference}" if not study.against else "minus its reference"
        lines += [f"| arm | seeds | at step {found.steps} | {minus} | |", "|---|---:|---:|---:|---|"]
        if metric in found.start:
            lines.append(f"| *start of all arms* | | {found.start[metric]:.4g} | | |")
        for arm, entry in told[metric].items():
            value, change = Estimate(**entry["value"]), entry.get("difference")
            shown = Estimate(**change).text() if change else ""
            lines.append(f"| {arm} | {value.count} | {value.text()} | {shown} | {entry.get('verdict', '')} |")
        if metric in figures:
            lines += ["", f"![{study.labels.get(metric, metric)}]({figures[metric]})"]
    if found.warnings:
        lines += ["", "## Warnings of the measurements", "", *(f"- {line}" for line in found.warnings)]
    return lines


def from_where(study: Study) -> str:
    return f", from the weights of one run of {study.start}" if study.start else ""


def to_what(study: Study) -> str:
    """What differences are to, in words."""
    text = f"`{next(iter(study.arms))}`"
    others: dict[str, list[str]] = {}
    for arm, other in study.against.items():
        others.setdefault(other, []).append(arm)
    for other, arms in others.items():
        text += f" (of {', '.join(arms)}: to `{other}`)"
    return text


def missing(study: Study, found: Found) -> list[str]:
    """A paragraph about runs without a result at the last step."""
    without = [
        f"{arm} seed {seed}"
        for arm in study.arms
        for seed in study.seeds
        if found.steps not in found.results.get(arm, {}).get(seed, {})
    ]
    return ["", f"**Not finished:** {', '.join(without)}."] if without else []


def absent(metric: str, found: Found) -> str:
    """A line about a metric that no run has at the last step."""
    names = {
        name
        for by_seed in found.results.values()
        for by_step in by_seed.values()
        for name in by_step.get(found.steps, {})
    }
    return f"No run has a value of the name `{metric}` at the last step.{nearest(metric, sorted(names))}"


def cost_table(study: Study, found: Found) -> list[str]:
    """FLOPs and time of an average step."""
    arms = [arm for arm in study.arms if arm in found.costs]
    first = found.costs[arms[0]].flops["total"]
    lines = ["", "## Cost of a step", ""]
    lines += ["GFLOP of matrix products, convolutions and attention, counted; seconds are medians as the runs went, "]
    lines[-1] += f"beside whatever else the machine did. *relative*: to `{arms[0]}`."
    lines += ["", f"| arm | parameters | {' | '.join(PARTS_OF_A_STEP)} | relative | seconds | relative | settings |"]
    lines.append(f"|---|{'---:|' * (len(PARTS_OF_A_STEP) + 4)}---|")
    for arm in arms:
        cost, seconds, base = found.costs[arm], found.seconds.get(arm), found.seconds.get(arms[0])
        flops = " | ".join(f"{cost.flops[part] / 1e9:.4g}" for part in PARTS_OF_A_STEP)
        timing = f"{seconds:.3g}" if seconds else ""
        ratio = f"{seconds / base:.2f}" if seconds and base else ""
        settings = ", ".join(f"`{override}`" for override in study.arms[arm])
        relative = f"{cost.flops['total'] / first:.2f}"
        lines.append(f"| {arm} | {cost.parameters:,} | {flops} | {relative} | {timing} | {ratio} | {settings} |")
    return lines


def machine() -> str:
    """The GPU, or the processor."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    processor, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{os.cpu_count()} x {processor}, threads: {torch.get_num_threads()}, {platform.system()}"


def _all(texts) -> str:
    return ", ".join(dict.fromkeys(texts))
