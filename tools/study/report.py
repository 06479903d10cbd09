"""The report of a study: JSON for programs, Markdown for people, figures for both axes."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path

import torch

from core.training.records import read_lines
from tools.study.plan import Run, Study
from tools.study.run import results
from tools.study.summary import Results, difference, over_seeds, verdict


def write_report(study: Study, runs: list[Run], flops: dict[str, dict[str, float]], out: Path) -> Path:
    """results.json, report.md and one figure for each metric in `out`; returns the Markdown file."""
    found: Results = {arm: {} for arm in study.arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in study.arms}
    networks: dict[str, str] = {}
    for run in runs:
        found[run.arm][run.seed] = results(run)
        seconds[run.arm] += [entry["seconds"] for entry in read_lines(run.folder / "timings.jsonl")]
        for path in sorted((run.folder / "evaluation").glob("step-*.json")):
            networks |= json.loads(path.read_text())["networks"]
    times = {arm: statistics.median(values) for arm, values in seconds.items() if values}
    out.mkdir(parents=True, exist_ok=True)
    plain = {
        "title": study.title,
        "seeds": study.seeds,
        "arms": study.arms,
        "results": found,
        "flops_per_step": flops,
        "median_seconds_per_step": times,
        "networks": networks,
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "processor": processor()},
    }
    (out / "results.json").write_text(json.dumps(plain, indent=1) + "\n")
    figures = draw(study, found, flops, out)
    path = out / "report.md"
    path.write_text("\n".join(markdown(study, runs, found, flops, times, networks, figures)) + "\n")
    return path


def markdown(
    study: Study,
    runs: list[Run],
    found: Results,
    flops: dict[str, dict[str, float]],
    times: dict[str, float],
    networks: dict[str, str],
    figures: list[str],
) -> list[str]:
    reference, last = next(iter(study.arms)), runs[0].config.training.steps
    lines = [f"# {study.title or study.config}", "", study.about, ""]
    lines += [
        f"{len(study.seeds)} seeds, {last} steps. Values are means over seeds with 95 % intervals (Student's t); "
        f"differences are to `{reference}`, seed by seed: arms of one seed share initial weights, data and noise.",
        "",
        *(f"Network of the sample distances ({kind}): {name}." for kind, name in networks.items()),
        "",
        "| arm | FLOPs of a step, relative | seconds of a step, relative | settings |",
        "|---|---|---|---|",
    ]
    for arm, overrides in study.arms.items():
        shown = ", ".join(f"`{override}`" for override in overrides)
        lines.append(f"| {arm} | {_ratio(flops, arm, reference)} | {_ratio_of(times, arm, reference)} | {shown} |")
    for metric, better in study.metrics.items():
        lines += ["", f"## {study.labels.get(metric, metric)} ({better} is better)", ""]
        lines += [f"| arm | seeds | at step {last} | minus {reference} | |", "|---|---|---|---|---|"]
        for arm in study.arms:
            value = over_seeds(found, arm, last, metric)
            if value is None:
                continue
            change = None if arm == reference else difference(found, arm, reference, last, metric)
            said = "" if arm == reference else verdict(change, better)
            lines.append(f"| {arm} | {value.count} | {value.text()} | {change.text() if change else ''} | {said} |")
    return lines + [line for name in figures for line in ("", f"![{name}]({name})")]


def draw(study: Study, found: Results, flops: dict[str, dict[str, float]], out: Path) -> list[str]:
    """One figure per metric that was measured along the way: by steps and by FLOPs. Returns their file names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for metric, better in study.metrics.items():
        curves = {}
        for arm in study.arms:
            steps = sorted({step for by_step in found[arm].values() for step in by_step})
            points = [(step, over_seeds(found, arm, step, metric)) for step in steps]
            points = [(step, value) for step, value in points if value is not None]
            if len(points) > 1:
                curves[arm] = points
        if not curves:
            continue
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
        for arm, points in curves.items():
            mean = [value.mean for _, value in points]
            half = [value.half or 0.0 for _, value in points]
            low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
            for axis, unit in zip(axes, (1.0, flops[arm]["total"]), strict=True):
                x = [step * unit for step, _ in points]
                (line,) = axis.plot(x, mean, marker="o", markersize=3, label=arm)
                axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes[0].set(xlabel="optimizer steps", ylabel=f"{study.labels.get(metric, metric)} ({better} is better)")
        axes[1].set(xlabel="training FLOPs, teacher and encoders counted")
        axes[0].legend(fontsize=8)
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.tight_layout()
        name = metric.replace("/", "-").replace("=", "") + ".png"
        figure.savefig(out / name, dpi=130)
        pyplot.close(figure)
        drawn.append(name)
    return drawn


def processor() -> str:
    """The GPU's name, or the CPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def _ratio(flops: dict[str, dict[str, float]], arm: str, reference: str) -> str:
    return f"{flops[arm]['total'] / flops[reference]['total']:.2f}"


def _ratio_of(times: dict[str, float], arm: str, reference: str) -> str:
    return f"{times[arm] / times[reference]:.2f}" if arm in times and reference in times else ""
