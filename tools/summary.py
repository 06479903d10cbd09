"""The last lines of a command that went well: how long it took, and what to type next."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import yaml

SERVERS = ("app", "serve")  # end when they are told to


def summary(options: argparse.Namespace, seconds: float) -> list[str]:
    """What was made and where is printed by the command itself; this follows it. [] where nothing was made.

    Args:
        options: of the command, with `made`, a path, where it is none of its arguments.
    """
    if options.command in SERVERS or getattr(options, "print_config", False):
        return []
    following = next_commands(options)
    return [f"took {duration(seconds)}" + (". Next:" if following else "")] + [f"  {line}" for line in following]


def duration(seconds: float) -> str:
    """4.2 s, 3 min 12 s, 5 h 3 min"""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def next_commands(options: argparse.Namespace) -> list[str]:
    match options.command:
        case "train" | "finetune" | "demo" if getattr(options, "made", None) is not None:
            return of_run(Path(options.made))
        case "train" if options.dry_run:
            rest = [given for given in options.overrides if not given.startswith("run=")]
            return [typed("train", options.config, *rest, "run=FOLDER")]
        case "generate":
            report = [typed("report", options.folder)] if (options.folder / "run.json").is_file() else []
            return [typed("app", options.folder), *report]  # a run that was passed on has no history
        case "evaluate" if options.folder is not None:
            return [typed("report", options.folder)]
        case "rollout" if (options.out / "eval_info.json").is_file():
            return [typed("report", options.out)]
        case _:
            return []


def of_run(run: Path) -> list[str]:
    """What a finished run is good for: samples of its first stream, a page of it."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        stream, kind = next(iter(config["streams"])), config["condition"]["kind"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, yaml.YAMLError):
        return [typed("report", run)]
    asked = {"text": ["--prompt", "TEXT"], "label": ["--class", "NAME"]}.get(kind, [])
    return [typed("generate", stream, "--run", run, *asked), typed("report", run)]


def typed(*words: object) -> str:
    return shlex.join(["selfflow", *map(str, words)])
