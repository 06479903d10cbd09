"""selfflow serve: a policy over a websocket, for a rollout in another process or on another machine."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import ConfigError, choose
from robotics.baselines import Random, Repeat, Zero
from robotics.environment import ACTION_NAMES
from robotics.policy import RunPolicy
from robotics.server import ChunkPolicy, Inference, ServerOptions, Session, listen, openpi_session
from robotics.simpler.actions import ROTATIONS
from robotics.vla_eval import vla_eval_session
from tools.rollout import acting_options, add_acting_arguments

DEFAULTS = ServerOptions()
EXAMPLES = """examples:
  selfflow serve --policy runs/rt1
  selfflow serve --policy random
  selfflow serve --policy random --protocol vla-eval --port 8001

  curl http://127.0.0.1:8000/health        while it computes, too

A client: robotics/client.py, openpi's, or the benchmarks of vla-eval (docs/robots_simpler.md). Anyone who reaches the
port can use the policy: leave --host at this machine, and let ssh -L carry it to another.
"""

# Name -> a new policy for each session.
POLICIES: dict[str, Callable[[], ChunkPolicy]] = {
    "random": Random,
    "repeat": lambda: Repeat(Random()),
    "zero": Zero,
}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a policy over a websocket",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", required=True, metavar="RUN|NAME", help=f"a run, or {', '.join(POLICIES)}")
    parser.add_argument("--protocol", choices=("openpi", "vla-eval"), default="openpi", help="(default openpi)")
    parser.add_argument("--host", default=DEFAULTS.host, help=f"address to listen at (default {DEFAULTS.host})")
    parser.add_argument("--port", type=int, default=DEFAULTS.port, help=f"0 takes a free one (default {DEFAULTS.port})")
    parser.add_argument(
        "--patience",
        type=float,
        default=DEFAULTS.patience,
        metavar="S",
        help=f"seconds without a request after which a session is closed (default {DEFAULTS.patience:g})",
    )
    parser.add_argument("--camera", metavar="NAME", help="vla-eval: of its images (default the first)")
    parser.add_argument("--rotation", choices=ROTATIONS, default="rpy", help="vla-eval: of the policy (default rpy)")
    add_acting_arguments(parser.add_argument_group("how a run acts"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.execute is not None and options.execute < 1:
        raise ConfigError(f"--k: {options.execute} must be at least 1")
    chosen = ServerOptions(options.host, options.port, options.patience)
    inference = served(options.policy, acting_options(options))

    def started(port: int) -> None:
        print(f"serving {options.policy} at ws://{options.host}:{port} ({options.protocol}); ctrl-c stops", flush=True)

    asyncio.run(listen(inference, chosen, session(options), started))
    return 0


def served(name: str, acting: dict[str, Any]) -> Inference:
    """Policies of a run, which share its weights, or of `POLICIES`."""
    if Path(name).is_dir():
        first = RunPolicy.from_pretrained(name, **acting)
        return Inference(lambda: RunPolicy(first.loaded, first.stream, first.settings), first.width)
    if set(acting) - {"execute"}:
        raise ConfigError(f"{', '.join(acting)}: of the policy of a run, and {name} is none")
    return Inference(choose("--policy", name, POLICIES))


def session(options: argparse.Namespace) -> Session:
    """The exchange of one connection."""
    if options.protocol == "vla-eval":
        return vla_eval_session(options.execute, options.camera, options.rotation)
    return openpi_session({"policy": options.policy, "actions": list(ACTION_NAMES)})
