"""selfflow report: one self-contained HTML page of one or several runs, of rollouts and of studies."""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from core.durable import write_durably, writing
from core.errors import ConfigError
from core.optional import need
from tools.outputs import output_folder
from tools.report import tables
from tools.report.charts import COLOURS, sections
from tools.report.folders import Looks, RunLook, look
from tools.report.media import embed, fit, generated, previews
from tools.report.rollouts import rollouts, study

BUDGET = 3_400_000  # bytes of media in a page; plotly takes 4.8 MB, curves 1.5 MB at most
HERE = Path(__file__).parent
WITHOUT = "All other commands work"
EXAMPLES = """examples:
  selfflow report runs/quickstart                                    writes report.html in the run folder
  selfflow report runs/self_flow runs/plain --out compared.html      runs overlaid, and where their settings differ
  selfflow report runs/policy runs/policy-rollouts                   a policy with its rollouts
  selfflow report runs/studies/cifar10 --out study.html              a study of `selfflow compare`

The page holds everything that it shows and opens from disk, without a network.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="a web page of runs: curves, samples, settings, data, commands",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN", help="runs; folders of rollouts and studies, too"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="of the page (default report.html in the first folder)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    out = options.out or options.folders[0] / "report.html"
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; name a file in it, such as {out / 'report.html'}")
    looks = look(options.folders)
    output_folder(out.parent, "--out")
    written = write_report(looks, out)
    print(f"report: {written} ({written.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def write_report(looks: Looks, out: Path) -> Path:
    """Raises ConfigError where a package of the extra `report` is missing."""
    page = render(looks)
    with writing(out):
        write_durably(out, page)
    return out


def render(looks: Looks) -> str:
    """The whole page. All text of users is escaped: by the template, and for plotly, which reads markup, in charts."""
    jinja2 = need("jinja2", "report", WITHOUT)
    plotly = need("plotly.offline", "report", WITHOUT)
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    places = max(1, len(looks.runs) + len(looks.rollouts) + len(looks.studies))
    differing, every = tables.settings(looks.runs)
    charts = sections(looks.runs)
    return environment.get_template("page.html.j2").render(
        title=", ".join([run.name for run in looks.runs] or [path.name for path, _ in looks.rollouts + looks.studies]),
        runs=looks.runs,
        colours=[COLOURS[number % len(COLOURS)] for number in range(len(looks.runs))],
        charts=charts,
        figures={
            chart.key: {"data": chart.data, "unit": html.escape(chart.unit)} for s in charts for chart in s.charts
        },
        samples=samples(looks.runs, BUDGET * 3 // 4 // places),
        outputs=outputs(looks.runs, BUDGET // 4 // places),
        differing=differing,
        settings=every,
        rollouts=[rollouts(path, found, BUDGET // places) for path, found in looks.rollouts],
        studies=[study(path, found, BUDGET // places) for path, found in looks.studies],
        tables=tables,
        style=(HERE / "page.css").read_text(),
        script=(HERE / "page.js").read_text(),
        plotly=plotly.get_plotlyjs(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=metadata.version("selfflow"),
    )


def samples(runs: Sequence[RunLook], budget: int) -> list[dict[str, Any]]:
    """For every stream: the steps of its slider, and for each run its name, its steps with their items and a note.

    Args:
        budget: bytes for each run.
    """
    found = [previews(run.path) for run in runs]
    rows = []
    for stream in dict.fromkeys(name for each in found for name in each):
        blocks = []
        for run, each in zip(runs, found, strict=True):
            if stream in each:
                steps, note = fit(each[stream], budget // len(each))
                blocks.append({"run": run.name, "steps": steps, "note": note})
        steps = sorted({step for block in blocks for step, _ in block["steps"]})
        rows.append({"stream": stream, "steps": steps, "blocks": blocks})
    return rows


def outputs(runs: Sequence[RunLook], budget: int) -> list[dict[str, Any]]:
    """What was generated with each run, by folder, as far as `budget` bytes of each run hold it."""
    rows = []
    for run in runs:
        places = generated(run.path)
        for place, files in places.items():
            items, used = [], 0
            for path, caption in files:
                item = embed(path, caption)
                if item and used + item.size <= budget // len(places):
                    items.append(item)
                    used += item.size
            if items:
                rows.append({"run": run.name, "place": place, "items": items})
    return rows
