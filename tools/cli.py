"""The `selfflow` command: one file per subcommand; parse, build, call one function."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

from core.errors import AccidentError, SelfFlowError
from core.progress import quiet
from core.training.accidents import describe
from core.training.distributed import is_told_by_first
from core.training.say import say
from tools.summary import summary

COMMANDS = (
    "init",
    "train",
    "finetune",
    "encode",
    "stats",
    "generate",
    "app",
    "evaluate",
    "demonstrations",
    "rollout",
    "serve",
    "simpler",
    "compare",
    "inspect",
    "report",
    "import",
    "export",
    "replay",
    "bench",
    "demo",
)
MISTAKES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)  # a path, not the machine
MODULES = {"import": "import_weights", "export": "export_weights"}  # `import` is a word of the language


def build_parser() -> argparse.ArgumentParser:
    """Each subcommand's module adds its own arguments in `add_parser(subparsers)` and sets `run`."""
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="selfflow",
        description="Self-Flow training and generation for images, video and audio.",
        epilog="selfflow COMMAND --help shows the options and examples of a command.",
    )
    said = "no progress bars and no summary"
    parser.add_argument("--quiet", action="store_true", help=said)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"tools.{MODULES.get(name, name)}").add_parser(subparsers)
    for command in subparsers.choices.values():
        # before or after the command
        command.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help=said)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error meant for people is printed without a traceback and gives its own exit code, 2 for
    most (docs/operations.md)."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; these came after an option: `CONFIG --dry-run key=value`.
    if rest and not (hasattr(options, "overrides") and all(re.match(r"[\w.]+=", argument) for argument in rest)):
        parser.error(f"unknown arguments for {options.command}: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        started = time.monotonic()
        with quiet(options.quiet):
            code = options.run(options) or 0
        first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, whose group has ended by now
        if code == 0 and first and not options.quiet:
            for line in summary(options, time.monotonic() - started):
                say(line)
        sys.stdout.flush()  # here, where a failure can be reported
        return code
    except SelfFlowError as error:
        if not is_told_by_first(error):  # of several processes
            say(f"error: {error}", everywhere=True)
        return error.exit_code
    except KeyboardInterrupt:  # training handles it itself, and finishes its step first
        say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe, like `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the flush at exit
        return 0
    except OSError as error:  # a disk that is full, a folder that cannot be read or written
        reason = describe(error)
        if reason is None:
            raise
        if not is_told_by_first(error):
            say(f"error: {reason}", everywhere=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it may be stdout that is full
        return 2 if isinstance(error, MISTAKES) else AccidentError.exit_code


if __name__ == "__main__":
    sys.exit(main())
