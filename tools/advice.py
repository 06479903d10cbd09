"""The exact commands to type after a bad step or the machine has ended a run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from configs.schema import Config
from core.errors import BadStepError
from core.training.checkpoint import CheckpointStore


def command(options: argparse.Namespace, *more: str, leave_out: str = "") -> str:
    """The command that resumes a run. Changes are noted in the run, and are not repeated.

    Args:
        more: further arguments, in place of overrides of the setting `leave_out`.
    """
    overrides = [given for given in options.overrides if given.partition("=")[0] != leave_out]
    return shlex.join(["selfflow", *_which(options), *overrides, *more])


def go_on(options: argparse.Namespace, config: Config) -> str:
    """After an end that is not the last step: the last checkpoint, and the same command."""
    step = _latest(config)
    if step is not None:
        return f"The last checkpoint is of step {step}. To go on from it: {next_command(options, config)}"
    return f"There is no checkpoint yet. To start again: {next_command(options, config)}"


def next_command(options: argparse.Namespace, config: Config, store: CheckpointStore | None = None) -> str:
    """The command that resumes the run, or starts it again. `store`: its checkpoints, where they are known already."""
    if (_latest(config) if store is None else store.latest()) is not None:
        return command(options)
    return shlex.join(["selfflow", *_arguments(options)])


def _latest(config: Config) -> int | None:
    return CheckpointStore(Path(config.run) / "checkpoints").latest()


def _arguments(options: argparse.Namespace) -> list[str]:
    """All arguments that such a start had."""
    found = [*_which(options), *options.overrides]
    found += [part for change in options.change for part in ("--change", change)]
    if options.command == "train" and options.init_from is not None:
        found += ["--init-from", str(options.init_from)]
        found += [part for pattern in options.init_drop for part in ("--init-drop", pattern)]
        found += [part for pattern in options.init_fresh for part in ("--init-fresh", pattern)]
    return found


def _which(options: argparse.Namespace) -> list[str]:
    source = ["--from", str(options.source)] if options.command == "finetune" else []
    return [options.command, str(options.config), *source]


def after_bad_step(options: argparse.Namespace, config: Config, error: BadStepError) -> str:
    """What can be done about values that are not finite, or too many spikes, each with its command."""
    step, half = _latest(config), f"{config.training.optimizer.lr / 2:g}"
    name = "training.optimizer.lr"
    if step is None:  # nothing to keep, so that any setting may be another one
        slower = command(options, f"{name}={half}", leave_out=name)
    else:
        slower = command(options, "--change", f"{name}={half}")
    lines = ["There is no checkpoint yet." if step is None else f"The last checkpoint is of step {step}."]
    if error.bad_step is None:
        lines += ["The weights went wrong after it: train on from it with a lower learning rate:", f"  {slower}"]
        return "\n".join(lines)
    skipped = sorted({*config.training.skip_steps, error.bad_step})
    skip = f"training.skip_steps=[{','.join(map(str, skipped))}]"
    row = 1
    while error.bad_step - row in skipped:
        row += 1
    if row > 1:
        lines.append(f"It is the bad step number {row} in a row: more likely the weights are at fault than the data.")
    choices = {"leave this step out": command(options, skip, leave_out="training.skip_steps"), "halve lr": slower}
    ordered = list(choices.items())[:: -1 if row > 1 else 1]
    lines += ["The same command meets the same values again. To go on, one of", *(f"  {typed}" for _, typed in ordered)]
    return "\n".join(lines)
