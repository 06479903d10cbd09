"""What a person asks for in the page, as a command line of `selfflow generate`, which checks and makes it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from configs.runs import LoadedRun
from core.errors import ConfigError
from tools.generate.generate import add_parser

MOST_CHARACTERS = 2_000  # of a prompt
# Option of `selfflow generate` -> the name of its field in the page.
FIELDS = {
    "--prompt": "Prompts",
    "--class": "Classes",
    "--negative": "Negative prompt",
    "--number": "Samples of each prompt",
    "--seed": "Seed",
    "--steps": "Steps",
    "--solver": "Solver",
    "--cfg-scale": "Guidance",
    "--cfg-interval": "Guidance from, to",
    "--shift": "Shift",
    "--image": "Image",
    "--mask": "Painting",
    "--first-frame": "First frame",
    "--video": "Video",
    "--audio": "Audio",
    "--continue": "Audio to continue",
}


@dataclass(frozen=True)
class Request:
    """
    Attributes:
        prompts: texts or class names; () for runs without conditions.
        settings: of the sampler, under the names of `SamplerConfig`; None leaves one to the run.
        files: name of a file that can be given -> PART=PATH.
    """

    stream: str
    prompts: Sequence[str] = ()
    negative: str = ""
    number: int | None = 1
    seed: int | None = 0
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def samples(self) -> int:
        return (self.number or 0) * max(1, len(self.prompts))


def arguments(request: Request, loaded: LoadedRun, out: str) -> list[str]:
    """Of `selfflow`, to make what is asked for without the page. Raises ConfigError for fields that are left empty."""
    found = ["generate", request.stream, "--run", str(loaded.folder), "--step", str(loaded.step)]
    if loaded.weights != "ema":
        found += ["--weights", loaded.weights]
    if loaded.ema_length is not None:
        found += ["--ema-length", f"{loaded.ema_length:g}"]
    option = {"label": "--class", "text": "--prompt"}.get(loaded.config.condition.kind)
    if option is not None:
        if not request.prompts:
            raise ConfigError(f"{FIELDS[option]}: say what is to be made")
        found += [f"{option}={prompt}" for prompt in request.prompts]  # with =, since a prompt may begin with a hyphen
    if request.negative:
        found.append(f"--negative={request.negative}")
    if long := [text for text in (*request.prompts, request.negative) if len(text) > MOST_CHARACTERS]:
        raise ConfigError(f"Prompts: {len(long[0]):,} characters, at most {MOST_CHARACTERS:,} are read")
    for option, value in (("--number", request.number), ("--seed", request.seed)):
        if value is None:
            raise ConfigError(f"{FIELDS[option]}: is empty; give a number")
        found.append(f"{option}={value}")
    for name, value in request.settings.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, (tuple, list)):
            if None in value:
                raise ConfigError(f"{FIELDS[option]}: is empty; give two numbers")
            found += [option, *(f"{number:g}" for number in value)]
        elif value is not None:
            found.append(f"{option}={value:g}" if isinstance(value, float) else f"{option}={value}")
    found += [f"--{name.replace('_', '-')}={value}" for name, value in request.files.items()]
    return [*found, f"--out={out}"]


def command(arguments: Sequence[str]) -> str:
    """As it is typed."""
    return shlex.join(["selfflow", *arguments])


class _Parser(argparse.ArgumentParser):
    """Leaves by ConfigError, not by the end of the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of `selfflow generate`. Raises ConfigError for those that it does not take."""
    parser = _Parser(prog="selfflow", add_help=False)
    add_parser(parser.add_subparsers(dest="command", required=True))
    return parser.parse_args(list(arguments))


def in_words_of_the_page(message: str) -> str:
    """A message with the names of the fields in place of those of options."""
    return re.sub(r"--[a-z][a-z-]*", lambda found: FIELDS.get(found[0], found[0]), message)
