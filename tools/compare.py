"""selfflow compare: the same trunk, data, budget and seeds for every method, and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import ConfigError
from tools.study.plan import Run, load_study, plan
from tools.study.report import write_report
from tools.study.run import flops, measure, train

EXAMPLES = """examples:
  selfflow compare configs/studies/tiny.yaml
  selfflow compare configs/studies/*.yaml --out runs/studies
  selfflow compare configs/studies/cifar10.yaml --arms vanilla,self_flow --seeds 0       one of several terminals
  selfflow compare configs/studies/cifar10.yaml --report-only

Runs stand in OUT/STUDY/ARM/seed-SEED and are ordinary run folders. The same command resumes what was interrupted and
skips what is done; --arms and --seeds share a study among several machines or terminals. OUT/STUDY/report.md,
results.json and the figures hold what is there so far.
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
    for path in options.studies:
        study = load_study(path, options.set)
        out = options.out / path.stem
        runs = plan(study, path, out)
        for chosen in [] if options.report_only else choose_runs(runs, options.arms, options.seeds):
            print(f"{path.stem}: {chosen.arm}, seed {chosen.seed}", flush=True)
            if not train(chosen):
                print(f"stopped; the same command goes on with {chosen.folder}")
                return 1
            measure(chosen, study.along, out)
        started = [one for one in runs if (one.folder / "config.yaml").exists()]
        cost = {one.arm: flops(one) for one in started if one.seed == started[0].seed}
        missing = [arm for arm in study.arms if arm not in cost]
        if missing:
            print(f"{path.stem}: no report yet; no run of {', '.join(missing)}")
            continue
        print(f"{path.stem}: {write_report(study, started, cost, out)}")
    return 0


def choose_runs(runs: list[Run], arms: str | None, seeds: str | None) -> list[Run]:
    """Those that the command line asks for. Raises ConfigError for an arm or seed that the study does not have."""
    known_arms, known_seeds = {one.arm for one in runs}, {str(one.seed) for one in runs}
    wanted_arms = known_arms if arms is None else set(arms.split(","))
    wanted_seeds = known_seeds if seeds is None else set(seeds.split(","))
    for option, wanted, known in (("--arms", wanted_arms, known_arms), ("--seeds", wanted_seeds, known_seeds)):
        if unknown := sorted(wanted - known):
            raise ConfigError(f"{option}: {', '.join(unknown)} not in the study; it has {', '.join(sorted(known))}")
    return [one for one in runs if one.arm in wanted_arms and str(one.seed) in wanted_seeds]
