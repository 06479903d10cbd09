"""selfflow app: a page in the browser that generates with a run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from configs.runs import WEIGHTS, load_run
from core.errors import ConfigError
from tools.app.studio import Limits, Studio
from tools.outputs import output_folder

DEFAULTS = Limits()
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLES = """examples:
  selfflow app runs/quickstart
  selfflow app runs/quickstart --port 8080 --open         opens the browser, too
  ssh -L 7860:127.0.0.1:7860 MACHINE                      to reach the page of another machine

Whoever reaches the page can generate with the run, and see and fill its output folder: leave --host at this machine.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "app",
        help="generate with a run in the browser",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/generated)")
    parser.add_argument("--host", default=LOOPBACK[0], help=f"address to listen at (default {LOOPBACK[0]})")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one (default 7860)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), default="ema", help="default ema")
    parser.add_argument("--ema-length", type=float, help="weights of a post-hoc EMA of this length, such as 0.08")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--text-encoder", help="folder or hub name of the run's text encoder, where the run names none")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--time-limit", type=float, default=DEFAULTS.seconds, metavar="S", help=f"of a request ({DEFAULTS.seconds:g})"
    )
    limits.add_argument(
        "--most-samples", type=int, default=DEFAULTS.samples, help=f"of a request (default {DEFAULTS.samples})"
    )
    limits.add_argument(
        "--most-megabytes", type=float, default=DEFAULTS.megabytes, help=f"of a file (default {DEFAULTS.megabytes:g})"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    limits = Limits(options.time_limit, options.most_samples, options.most_megabytes)
    if found := limits.problems():
        raise ConfigError(found)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before its import; it would report to its makers
    from tools.app.page import serve  # or say now that Gradio is missing

    out = output_folder(options.out or options.folder / "generated", "--out")
    loaded = load_run(
        options.folder, options.step, options.device, options.text_encoder, options.weights, options.ema_length
    )
    studio = Studio(loaded, out.resolve(), limits)
    if options.host not in LOOPBACK:
        print(f"warning: --host {options.host}: everyone who reaches it can use the run and see {out}")
    serve(studio, options.host, options.port, options.open)
    return 0
