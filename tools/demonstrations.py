"""selfflow demonstrations: a data set of scripted experts, to train policies on."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.progress import ProgressBar
from robotics.demonstrations import HOLD, Recording, record
from robotics.environments import ENVIRONMENTS
from tools.outputs import output_folder
from tools.rollout import check_counts, environment_options

EXAMPLES = """examples:
  selfflow demonstrations --env kinematic --task reach pick --episodes 1000 --out data/tabletop size=32
  selfflow demonstrations --env kinematic --task move_near --episodes 5000 --out data/move_near --workers 2

Writes a LeRobot data set of version 2.1 with images, states and actions, in which every episode ends well. In a share
of the steps (--noisy) the gripper is pushed aside; the recorded action is what the expert wanted, so that policies
learn to correct themselves. Rollouts use other episodes than demonstrations.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demonstrations",
        help="write a data set of scripted experts",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the environment")
    parser.add_argument("--env", required=True, metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--task", required=True, nargs="+", metavar="NAME", help="one or more tasks")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--episodes", type=int, default=1000, metavar="N", help="of each task (default 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first episode (default 0)")
    parser.add_argument("--noisy", type=float, default=0.35, metavar="SHARE", help="of disturbed steps (default 0.35)")
    parser.add_argument("--hold", type=int, default=HOLD, metavar="STEPS", help=f"after success (default {HOLD})")
    parser.add_argument("--noise", type=float, default=0.04, metavar="METERS", help="of a disturbance (default 0.04)")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances (default 0)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; changes no byte (default 1)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    check_counts(options, ("episodes", 1), ("workers", 1))
    settings = environment_options(options.overrides)
    recordings = [
        Recording(options.env, task, settings, options.noisy, options.noise, options.seed, options.hold, options.first)
        for task in options.task
    ]
    folder = output_folder(options.out, "--out")
    with ProgressBar(total=options.episodes * len(recordings), unit="episode") as bar:
        left_out = record(recordings, options.episodes, folder, options.workers, bar.update)
    kept = {task: options.episodes - count for task, count in left_out.items()}
    print(f"{folder}: {', '.join(f'{count} of {task}' for task, count in kept.items())}")
    for task, count in left_out.items():
        if count:
            print(f"{task}: {count} of {options.episodes} episodes are left out: the expert did not succeed")
