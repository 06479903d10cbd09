"""Charts of several runs as plotly figures: plain dicts, which the page draws when they come into view."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.report.curves import Curve, smooth, thin
from tools.report.folders import RunLook

POINTS = 60_000  # of all curves of a page together, about 20 bytes each
SMOOTHED = 120  # points of the averaged line of a long curve
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca8a04", "#06b6d4", "#ec4899")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SCALE = ("#4653b5", "#3a7bd0", "#2a9fc4", "#2bb79a", "#57c46b", "#a3be3a", "#dda324", "#ee7f33", "#e4554f", "#c53a7c")
FAMILY = re.compile(r"(.*)/(t|layer)=([^/]+)$")


@dataclass(frozen=True)
class Chart:
    """
    Attributes:
        key: one word, for the page.
        data: plotly traces; each has `meta`, the number of its run.
        log: whether a logarithmic axis can be of use.
    """

    key: str
    title: str
    unit: str
    data: list[dict[str, Any]]
    log: bool = False


@dataclass(frozen=True)
class Section:
    key: str
    title: str
    about: str
    charts: list[Chart]


def sections(runs: Sequence[RunLook]) -> list[Section]:
    """All charts; a section without one is left out."""
    metrics = [run.metrics.curves for run in runs]
    held_out = [run.validation.curves for run in runs]
    timings = [run.timings.curves for run in runs]
    total = sum(len(curves) for each in (metrics, held_out, timings) for curves in each)
    points = max(40, min(1000, POINTS // max(1, total)))

    def draw(curves: list[dict[str, Curve]], wanted: str, unit: str = "", log: bool = False) -> list[Chart]:
        return _charts([run.name for run in runs], curves, re.compile(wanted), points, unit, log)

    found = [
        Section(
            "loss",
            "Training loss",
            "The loss of every stream, and the flow loss of its parts.",
            draw(metrics, r"(.+/)?(loss|flow(/.+)?)$", log=True),
        ),
        Section(
            "held-out",
            "Held-out loss",
            "Velocity error of the EMA weights on held-out data (streams.NAME.val), by time t: 0 is data, 1 is noise.",
            draw(held_out, r".+/velocity/.+", log=True),
        ),
        Section(
            "alignment",
            "Alignment and feature health",
            "How far the student's features are from the teacher's, and what the features of the EMA weights are like.",
            draw(metrics, r"(.+/)?(align.*|teacher.*|repa.*)$") + draw(held_out, r".+/health/.+"),
        ),
        Section(
            "optimization",
            "Learning rate and gradients",
            "",
            draw(metrics, r"(.+/)?lr$") + draw(metrics, r"(.+/)?grad_norm$", log=True),
        ),
        Section(
            "rate",
            "Rates and waiting",
            "Wall-clock, of the machine as it was; steps of different streams take different time.",
            draw(timings, "rate$", "steps per second")
            + draw(timings, "waiting$", "% of a step spent waiting for data"),
        ),
    ]
    known = re.compile(r"(.+/)?(loss|flow(/.+)?|align.*|teacher.*|repa.*|lr|grad_norm)$")
    rest = [{name: curve for name, curve in curves.items() if not known.fullmatch(name)} for curves in metrics]
    found.append(Section("others", "Other metrics", "", draw(rest, r".+")))
    return [section for section in found if section.charts]


def _charts(
    names: list[str], curves: list[dict[str, Curve]], wanted: re.Pattern[str], points: int, unit: str, log: bool
) -> list[Chart]:
    """One chart for each name, or for each family of names that differ in their time or layer."""
    grouped: dict[str, list[tuple[int, str, Curve]]] = {}
    for run, own in enumerate(curves):
        for name, curve in own.items():
            if wanted.fullmatch(name):
                family = FAMILY.fullmatch(name)
                title, member = (f"{family[1]} by {family[2]}", f"{family[2]}={family[3]}") if family else (name, "")
                grouped.setdefault(title, []).append((run, member, curve))
    found = []
    for title, rows in sorted(grouped.items(), key=lambda item: (item[0].split("/")[0], len(item[0]), item[0])):
        members = list(dict.fromkeys(member for _, member, _ in rows))
        data = []
        for run, member, curve in rows:
            if member:
                place = members.index(member) * (len(SCALE) - 1) / max(1, len(members) - 1)
                colour, dash = SCALE[round(place)], DASHES[run % len(DASHES)]
            else:
                colour, dash = COLOURS[run % len(COLOURS)], "solid"
            label = " · ".join(part for part in (names[run] if len(names) > 1 else "", member) if part) or title
            data += _traces(html.escape(label), run, curve, points, colour, dash)
        found.append(Chart(f"c-{re.sub(r'[^a-z0-9]+', '-', title.lower())}", title, unit, data, log))
    return found


def _traces(label: str, run: int, curve: Curve, points: int, colour: str, dash: str) -> list[dict[str, Any]]:
    """The line; a long one faintly, with its average in front. `label` is markup."""
    about = {"type": "scatter", "mode": "lines", "meta": run, "name": label, "legendgroup": label}
    line = {"color": colour, "width": 2, "dash": dash}
    steps, values = thin(curve, points)
    plain = {**about, "x": steps, "y": values, "line": line}
    if sum(value is not None for value in values) <= 3:
        plain["mode"] = "lines+markers"
    if len(curve.steps) <= 2 * SMOOTHED:
        return [plain]
    faint = {**plain, "line": {**line, "width": 1}, "opacity": 0.3, "hoverinfo": "skip", "showlegend": False}
    steps, values = smooth(curve, min(SMOOTHED, points))
    return [faint, {**about, "x": steps, "y": values, "line": line}]
