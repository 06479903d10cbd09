"""The `selfflow` command: one file per subcommand; parse, build, call one function."""

from __future__ import annotations

import argparse
import re
import sys

from core.errors import SelfFlowError

COMMANDS = (
    "init",
    "train",
    "encode",
    "generate",
    "evaluate",
    "compare",
    "inspect",
    "import",
    "export",
    "bench",
    "demo",
)
MODULES = {"import": "import_weights", "export": "export_weights"}  # `import` is a word of the language


def build_parser() -> argparse.ArgumentParser:
    """Each subcommand's module adds its own arguments in `add_parser(subparsers)` and sets `run`."""
    from importlib import import_module

    parser = argparse.ArgumentParser(
        prog="selfflow",
        description="Self-Flow training and generation for images, video and audio.",
        epilog="selfflow COMMAND --help shows the options and examples of a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"tools.{MODULES.get(name, name)}").add_parser(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; an error meant for people is printed without a traceback and gives exit code 2."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one run only; these came behind an option: `CONFIG --dry-run key=value`.
    if rest and not (hasattr(options, "overrides") and all(re.match(r"[\w.]+=", argument) for argument in rest)):
        parser.error(f"unknown arguments for {options.command}: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        return options.run(options) or 0
    except SelfFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # training handles it itself, and finishes its step first
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
