"""selfflow compare: the same trunk, data, budget and seeds for every method, and a report."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections import Counter
from pathlib import Path

from core.durable import writing
from core.errors import ConfigError, SelfFlowError, described, nearest
from core.optional import missing
from tools.compare.cost import Cost, cost
from tools.compare.plan import Run, Study, load_study, plan, refuse, start_run
from tools.compare.report import write_report
from tools.compare.run import measure, measure_start, train
from tools.outputs import output_folder

EXAMPLES = """examples:
  selfflow compare configs/studies/tiny.yaml                   a first look: two minutes, data drawn in code
  selfflow compare configs/studies/cifar10.yaml configs/studies/digits.yaml --out runs/studies
  selfflow compare configs/studies/cifar10.yaml --arms vanilla,Self-Flow --seeds 0       one of several terminals
  selfflow compare configs/studies/cifar10.yaml --report-only
  selfflow compare configs/studies/tiny.yaml --out runs/longer --set settings=[training.steps=600]

Runs stand in OUT/STUDY/ARM/seed-SEED and are ordinary run folders. The same command resumes what was interrupted and
skips what is done; --arms and --seeds share a study among several machines or terminals. OUT/STUDY/report.md,
results.json and the figures hold what is there so far. A run that fails is named and given up, and the others go on;
the exit status is then 1.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="train and evaluate several methods side by side",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY.yaml", help="studies, one after the other")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), help="where the runs go (default runs/studies)"
    )
    parser.add_argument("--arms", help="only these, separated by commas")
    parser.add_argument("--seeds", help="only these, separated by commas")
    parser.add_argument("--report-only", action="store_true", help="train and evaluate nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="changes a setting of the study"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    for package in ("matplotlib", "scipy"):  # not found to be missing after a night of training
        if importlib.util.find_spec(package) is None:
            raise ConfigError(missing(package, "compare: its report", "Training and `selfflow evaluate` work"))
    if twice := [name for name, times in Counter(path.stem for path in options.studies).items() if times > 1]:
        raise ConfigError(f"compare: two studies named {twice[0]} would share the folder {options.out / twice[0]}")
    for path in options.studies:
        output_folder(options.out / path.stem, "--out")
    planned = []
    for path in options.studies:  # all of them before the first is trained
        study, out = load_study(path, options.set), options.out / path.stem
        runs = plan(study, path, out)
        chosen = [] if options.report_only else choose_runs(runs, study, options.arms, options.seeds)
        start = start_run(study, path, out)
        planned.append((path, study, out, runs, chosen, costs(study, chosen), start))
    code = 0
    for path, study, out, runs, chosen, known, start in planned:
        with writing(out):
            for arm, counted in known.items():
                counted.save(out / arm)
        failed: list[str] = []
        if start and chosen:
            print(f"{path.stem}: what all arms start from", flush=True)
            if not train(start):
                print(f"stopped; the same command goes on with {start.folder}")
                return 1
            failed += measure_start(start, chosen[0])
        for number, one in enumerate(chosen, start=1):
            print(f"{path.stem}: {one.arm}, seed {one.seed} ({number} of {len(chosen)})", flush=True)
            try:
                finished = train(one)
                if finished:
                    failed += measure(one, study.along, out)
            except Exception as error:  # noqa: BLE001, one run must not take the report of all others with it
                failed.append(f"{one.arm}, seed {one.seed} is given up: {described(error)}")
                print(failed[-1], file=sys.stderr)
                continue
            if not finished:
                print(f"stopped; the same command goes on with {one.folder}")
                return 1
        code = 1 if failed else code
        try:
            with writing(out):
                print(f"report: {report(study, runs, out, command(options, path), failed, start)}")
        except SelfFlowError as error:
            if len(planned) == 1:
                raise
            print(f"error: {path.stem}: {error}", file=sys.stderr)  # the next study still has its turn
            code = 2
    return code


def report(study: Study, runs: list[Run], out: Path, command: str, failed: list[str], start: Run | None = None) -> Path:
    """The report of the runs that were started.

    Args:
        failed: what went wrong this time, for the report's warnings.
        start: the run that all of them start from.

    Raises ConfigError where no run was started.
    """
    started = [one for one in runs if (one.folder / "config.yaml").exists()]
    if not started:
        raise ConfigError(f"nothing to report; no run stands in {out}")
    saved = {one.arm: Cost.load(out / one.arm) for one in started}
    known = {arm: counted for arm, counted in saved.items() if counted}
    known |= costs(study, [one for one in started if one.arm not in known])
    return write_report(study, started, known, out, command, failed, start)


def choose_runs(runs: list[Run], study: Study, arms: str | None, seeds: str | None) -> list[Run]:
    """The runs that the command line asks for. Raises ConfigError for an arm or seed that the study does not have."""
    chosen = runs
    for option, text, known, of in (
        ("--arms", arms, list(study.arms), lambda one: one.arm),
        ("--seeds", seeds, [str(seed) for seed in study.seeds], lambda one: str(one.seed)),
    ):
        wanted = known if text is None else [name.strip() for name in text.split(",")]
        if wrong := [name for name in wanted if name not in known]:
            named = ", ".join(known)
            raise ConfigError(f"{option}: {name!r} is not one of {named}.{nearest(name, known)}" for name in wrong)
        chosen = [one for one in chosen if of(one) in wanted]
    return chosen


def costs(study: Study, runs: list[Run]) -> dict[str, Cost]:
    """arm -> cost of its first run. Raises ConfigError for arms that cannot be trained or measured."""
    found: dict[str, Cost] = {}
    wrong: dict[str, SelfFlowError] = {}
    for one in runs:
        if one.arm in found or one.arm in wrong:
            continue
        try:
            found[one.arm] = cost(one, study.along)
        except SelfFlowError as error:
            wrong[one.arm] = error
    refuse(wrong, study)
    return found


def command(options: argparse.Namespace, path: Path) -> str:
    """What repeats the whole study."""
    changed = [part for override in options.set for part in ("--set", override)]
    return shlex.join(["selfflow", "compare", str(path), "--out", str(options.out), *changed])
