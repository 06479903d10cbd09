"""selfflow simpler check: whether SIMPLER's own Python environment can run its tasks, and what to do where not."""

from __future__ import annotations

import argparse
from collections import Counter

from core.errors import ConfigError
from robotics.simpler.client import PYTHON, Simulator, SimulatorError
from robotics.simpler.episodes import PUBLISHED, VARIANTS, episodes, needed
from robotics.simpler.pins import PINS, violated

EXAMPLES = f"""examples:
  selfflow simpler check --python simpler/bin/python
  {PYTHON}=simpler/bin/python selfflow simpler check

Prints the versions that matter, which pins are violated, which files of the scenes are missing, and whether its
renderer works. How to install SIMPLER: docs/robots_simpler.md. Exit code 2 where something is wrong.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "simpler",
        help="check the simulator SIMPLER",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["check"], help="what to do")
    parser.add_argument("--python", metavar="PATH", help=f"of SIMPLER's environment (default: ${PYTHON})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        simulator = Simulator(options.python)
        simulator.start()
        try:
            return check(simulator)
        finally:
            simulator.close()
    except SimulatorError as error:
        raise ConfigError(str(error)) from error


def check(simulator: Simulator) -> int:
    """Print what is found; 0 where all tasks can run, else 2."""
    versions = simulator.ask("versions")
    wrong = violated(versions)
    print(f"environment: {simulator.python}")
    for pin in PINS:
        mark = "wrong" if pin.package in wrong else "ok"
        print(f"  {pin.package:<12} {versions.get(pin.package) or '-':<12} {pin.wanted:<16} {mark}")
    for package, line in wrong.items():
        print(f"  {package}: {line}")
    if versions.get("mani_skill2_real2sim") is None:
        return 2
    print(f"scenes: {versions['assets']}")
    incomplete = missing_scenes(simulator)
    try:
        simulator.ask("renderer")
        print("renderer: works")
    except SimulatorError as error:
        print(f"renderer: {error}")
        return 2
    return 2 if wrong or incomplete else 0


def missing_scenes(simulator: Simulator) -> bool:
    """Print for every task and variant whether its files are there, and the names of those that are not."""
    absent: Counter[str] = Counter()
    for task in PUBLISHED:
        for variant in VARIANTS:
            grid = episodes(task, variant)
            if not grid:
                continue
            missing = simulator.ask("missing_files", needs=needed(grid))
            absent.update(missing)
            state = "complete" if not missing else f"{len(missing)} files are missing"
            print(f"  {task:<20} {variant:<20} {len(grid):>4} episodes  {state}")
    for path in sorted(absent):
        print(f"  missing: {path}")
    return bool(absent)
