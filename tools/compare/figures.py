"""Figures of a study: each metric by steps and by FLOPs, and all differences to the first arm at the end."""

from __future__ import annotations

import re
from pathlib import Path

from tools.compare.plan import Study
from tools.compare.summary import Estimate, Results, difference, over_seeds


def curves(results: Results, metric: str) -> dict[str, list[tuple[int, Estimate]]]:
    """arm -> (step, value over seeds) of every step that has the metric; arms with two points or more."""
    found = {}
    for arm, seeds in results.items():
        steps = sorted({step for by_step in seeds.values() for step in by_step})
        points = [(step, over_seeds(results, arm, step, metric)) for step in steps]
        points = [(step, value) for step, value in points if value is not None]
        if len(points) > 1:
            found[arm] = points
    return found


def draw(study: Study, results: Results, flops: dict[str, float], out: Path) -> dict[str, str]:
    """metric -> name of its figure in `out`, for the metrics that have a curve.

    Args:
        flops: arm -> FLOPs of an average step.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {}
    for metric, better in study.metrics.items():
        found = curves(results, metric)
        if not found:
            continue
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
        for arm, points in found.items():
            mean = [value.mean for _, value in points]
            half = [value.half or 0.0 for _, value in points]
            low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
            for axis, unit in zip(axes, (1.0, flops[arm]), strict=True):
                x = [step * unit for step, _ in points]
                (line,) = axis.plot(x, mean, marker="o", markersize=3, label=arm)
                axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes[0].set(xlabel="optimizer steps", ylabel=f"{study.labels.get(metric, metric)} ({better} is better)")
        axes[1].set(xlabel="training FLOPs, teacher and encoders counted")
        axes[0].legend(fontsize=8)
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.tight_layout()
        drawn[metric] = re.sub(r"\W+", "-", metric).strip("-") + ".png"
        figure.savefig(out / drawn[metric], dpi=130)
        pyplot.close(figure)
    return drawn


def draw_differences(study: Study, results: Results, step: int, out: Path) -> str | None:
    """Every arm minus its reference, with intervals, one panel for each metric; the file's name, None without pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = {arm: other for arm in study.arms if (other := study.reference(arm)) in results and arm in results}
    others, panels = [arm for arm in study.arms if study.reference(arm)], {}
    for metric in study.metrics:
        found = {arm: difference(results, arm, other, step, metric) for arm, other in pairs.items() if other}
        found = {arm: change for arm, change in found.items() if change is not None}
        if found:
            panels[metric] = found
    if not panels:
        return None
    size = (2.6 * len(panels) + 1.2, 0.35 * len(others) + 1.4)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (metric, found) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(0, color="grey", linewidth=0.8)
        for place, arm in enumerate(others):
            if arm in found:
                axis.errorbar(found[arm].mean, place, xerr=found[arm].half, fmt="o", markersize=4, capsize=3)
        axis.set_title(f"{study.labels.get(metric, metric)}\n({study.metrics[metric]} is better)", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(alpha=0.3, axis="x")
    axes[0][0].set_yticks(range(len(others)), others, fontsize=8)
    axes[0][0].invert_yaxis()
    figure.suptitle(f"minus {' or '.join(dict.fromkeys(filter(None, pairs.values())))}, at step {step}", fontsize=9)
    figure.tight_layout()
    name = "differences.png"
    figure.savefig(out / name, dpi=130)
    pyplot.close(figure)
    return name
