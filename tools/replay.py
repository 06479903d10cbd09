"""selfflow replay: make one step of a run again, alone, and print everything that happens in it."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.replay import replay
from core.errors import NotFiniteError
from core.training.jsonl import read_lines
from core.training.listening import Listener

EXAMPLES = """examples:
  selfflow replay runs/first --step 1234
  selfflow replay runs/first --step 1234 --device cpu | less

The step is numbered as in metrics.jsonl and bad_step.json. It is made from the newest checkpoint before it; the steps
in between are made again first, so that of a step that ended its run, whose state before is always saved, is exact and
quick. The run is only read.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="make one step of a run again and print all of its values",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="number of the step, as in metrics.jsonl")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--root", type=Path, help="what relative data paths start from, for a run without a checkpoint; here"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        found = replay(options.path, options.step, Path(scratch), options.device, options.root)
        print(f"step {options.step} of {options.path}, from the checkpoint of step {found.checkpoint}")
        if again := found.before - found.checkpoint:
            print(f"{again} steps between them were made again")
        listener = Listener(found.trainer, print)
        metrics: Mapping[str, Any] = {}
        try:
            with listener.listening():
                metrics = found.trainer.train_step(found.before, found.microbatches)
        except NotFiniteError:
            metrics = json.loads((Path(scratch) / "bad_step.json").read_text())["values"]
        finally:
            found.trainer.folder.close()
    known = recorded(options.path, options.step)
    print("metrics")
    for name, value in metrics.items():
        print(f"  {name}: {value}{_compared(value, known.get(name))}")
    print(f"first value that is not finite: {listener.first_bad or 'none'}")
    return 0


def recorded(run: Path, number: int) -> Mapping[str, Any]:
    """What the run itself noted of the step."""
    for entry in read_lines(run / "metrics.jsonl"):
        if entry["step"] == number:
            return entry
    file = run / "bad_step.json"
    if file.exists():
        evidence = json.loads(file.read_text())
        if evidence["step"] + 1 == number:
            return evidence["values"]
    return {}


def _compared(value: Any, known: Any) -> str:
    if known is None:
        return ""
    return " (as recorded)" if str(value) == str(known) else f" (recorded: {known})"
