"""selfflow rollout: run a policy in a simulated environment, and tell how often and how surely it succeeds."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from core.durable import write_durably
from core.errors import ConfigError
from core.parallel import spread
from core.progress import ProgressBar
from core.training.checkpoint import CheckpointStore
from robotics.demonstrated import action_names, demonstrated_records, demonstrated_windows
from robotics.environment import Policy
from robotics.environments import ENVIRONMENTS, make_environment
from robotics.open_loop import open_loop, open_loop_table
from robotics.policies import BUILT_IN, make_policy
from robotics.policy import MODES, RunPolicy
from robotics.report import compare, summarize, table
from robotics.rollout import Rollout, run_episodes
from robotics.rollout_folder import EPISODES, RESULT, TABLE, RolloutFolder, missing, read_result
from robotics.uses import examples, measure_uses, uses_table
from tools.outputs import output_folder

EXAMPLES = f"""examples:
  selfflow rollout --env kinematic --task pick --policy expert --episodes 100 --out rollouts/expert
  selfflow rollout --env kinematic --task pick --policy random --episodes 100 --out rollouts/random \\
      --compare rollouts/expert
  selfflow rollout --env kinematic --task pick --policy runs/tabletop --k 3 --episodes 100 --out rollouts/tabletop
  selfflow rollout --open-loop data/tabletop --policy runs/tabletop --episodes 50 --out rollouts/open_loop
  selfflow rollout --env kinematic --task reach --policy zero --episodes 100 --out rollouts/zero --workers 2 size=32

Policies without a network: {", ".join(BUILT_IN)}. Episode i is a function of the task and i, so two policies can be
compared episode by episode. Finished episodes are kept: the same command goes on after a crash, or with more episodes.

Results: OUT/{RESULT} in LeRobot's shape with intervals, settings, protocol and versions under `selfflow`;
OUT/{EPISODES}, a line for each episode; OUT/{TABLE}; OUT/videos.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "rollout",
        help="run a policy in a simulated environment and measure its success",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the environment")
    parser.add_argument("--env", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--task", metavar="NAME", help="of the environment, such as pick")
    parser.add_argument(
        "--policy", required=True, metavar="RUN|NAME|URL", help=f"a run, {', '.join(BUILT_IN)}, or ws://HOST:PORT"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="of the results")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="how many (default 100)")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="number of the first episode (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's draws; changes no episode (default 0)")
    parser.add_argument("--videos", type=int, default=4, metavar="N", help="episodes to film (default the first 4)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; changes no result (default 1)")
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="FOLDER", help="another rollout, by episode"
    )
    parser.add_argument(
        "--open-loop", type=Path, metavar="DATA", help="in place of --env: compare a run's actions with demonstrations"
    )
    parser.add_argument(
        "--uses",
        type=int,
        metavar="N",
        help="with --open-loop: measure the run as policy, fast policy, world model, inverse dynamics model and video "
        "planner on N windows",
    )
    acting = parser.add_argument_group("how a run acts")
    add_acting_arguments(acting)
    parser.set_defaults(run=run)


def add_acting_arguments(group: Any) -> None:
    """Settings of a run's policy; `acting_options` reads them."""
    group.add_argument("--k", type=int, dest="execute", metavar="K", help="actions of a chunk to execute (default all)")
    group.add_argument("--mode", choices=MODES, help="fast has no video tokens (default joint)")
    group.add_argument("--video-steps", type=int, metavar="N", help="of the video; 0 leaves it noise (default all)")
    group.add_argument("--steps", type=int, metavar="N", help="of the sampler (default the run's)")
    group.add_argument("--cfg-scale", type=float, help="classifier-free guidance (default the run's)")
    group.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")


def acting_options(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run's policy that were given."""
    names = ("execute", "mode", "video_steps", "steps", "cfg_scale", "step")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def run(options: argparse.Namespace) -> None:
    check_counts(options, ("episodes", 1), ("workers", 1), ("videos", 0), ("first", 0))
    if options.open_loop is not None:
        run_open_loop(options)
        return
    if options.uses is not None:
        raise ConfigError("--uses: only with --open-loop DATA, the demonstrations to measure on")
    if options.env is None or options.task is None:
        raise ConfigError(
            "--env, --task: say where the policy runs; or --open-loop DATA compares it with demonstrations"
        )
    others = [read_result(folder) for folder in options.compare]
    settings = environment_options(options.overrides)
    rollout = Rollout(options.env, options.task, options.policy, options.seed, settings, acting_options(options))
    episodes = range(options.first, options.first + options.episodes)
    environment = make_environment(rollout.environment, rollout.task, rollout.options)  # names its mistakes first
    protocol, limit = environment.protocol, environment.episodes
    rollout = pinned(rollout, make_policy(rollout.policy, environment, rollout.acting))
    environment.close()
    if limit is not None and episodes.stop > limit:
        raise ConfigError(f"--episodes: {rollout.task} has the episodes 0 to {limit - 1}, not {episodes.stop - 1}")
    folder = RolloutFolder(output_folder(options.out, "--out"), rollout.settings())
    filmed = frozenset(episodes[: options.videos])
    work = partial(run_episodes, rollout, filmed, folder.videos)
    todo = missing(folder.records(), episodes)
    with ProgressBar(total=len(episodes), initial=len(episodes) - len(todo), unit="episode") as bar:
        for record in spread(work, todo, options.workers):
            folder.add(record)
            bar.update()
    records = folder.records()
    result = summarize([records[number] for number in episodes], rollout.settings(), protocol)
    compared = [compare(result, other) for other in others]
    if compared:
        result["selfflow"]["compared"] = compared
    text = table([result, *others], compared)
    folder.write(result, text)
    print(text, end="")


def pinned(rollout: Rollout, policy: Policy) -> Rollout:
    """With the checkpoint that acts, so that one which is published meanwhile changes nothing."""
    if not isinstance(policy, RunPolicy):
        return rollout
    step = policy.loaded.step
    checkpoint = CheckpointStore(policy.loaded.folder / "checkpoints").fingerprint(step)
    return replace(rollout, acting={**rollout.acting, "step": step}, checkpoint=checkpoint)


def run_open_loop(options: argparse.Namespace) -> None:
    if options.env is not None or options.task is not None or options.overrides:
        raise ConfigError("--open-loop: runs nothing; not with --env, --task or options of an environment")
    policy = RunPolicy.from_pretrained(options.policy, **acting_options(options))
    folder = output_folder(options.out, "--out")
    episodes = range(options.first, options.first + options.episodes)
    if options.uses is not None:
        if options.mode is not None or options.video_steps is not None:
            raise ConfigError("--uses: measures every mode; not with --mode or --video-steps")
        records = demonstrated_records(policy, options.open_loop, episodes, options.uses)
        uses = measure_uses(policy, examples(policy, list(records)), options.seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "uses.json", json.dumps(uses, indent=1) + "\n")
        print(uses_table(uses), end="")
        return
    windows = demonstrated_windows(policy, options.open_loop, episodes)
    report = open_loop(policy, ProgressBar(windows, unit="window"), action_names(policy.width))
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "open_loop.json", json.dumps(report, indent=1) + "\n")
    print(open_loop_table(report), end="")


def environment_options(overrides: list[str]) -> dict[str, Any]:
    """`key=value` each, the values as YAML reads them.

    Raises:
        ConfigError: another form.
    """
    found = {}
    for entry in overrides:
        name, sign, value = entry.partition("=")
        if not sign or not name:
            raise ConfigError(f"{entry!r}: an option of the environment is written key=value, such as size=32")
        found[name] = yaml.safe_load(value)
    return found


def check_counts(options: argparse.Namespace, *least: tuple[str, int]) -> None:
    """Raises ConfigError for an option below its least value."""
    for name, smallest in least:
        value = getattr(options, name)
        if value < smallest:
            raise ConfigError(f"--{name}: {value} must be at least {smallest}")
