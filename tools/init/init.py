"""selfflow init: look at a folder of media and write a configuration that trains on it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from configs.load import load_config
from core.errors import ConfigError
from modalities.data.sources.selection import SUFFIXES
from tools.init.first_config import condition_of, describe, machine, shown, write_config
from tools.init.folder_look import Look, look_at

EXAMPLES = """examples:
  selfflow init photos                          writes photos.yaml
  selfflow init photos --out configs/mine.yaml
  selfflow init videos --only video              where covers or audio clips lie beside the videos

Reads images, videos and audio in a folder, or tars and Parquet files of them; captions in NAME.txt or NAME.json
beside a file, or the names of its folders. Folders train and val (or test) are taken for what they say. Sizes, rates,
lengths, batches and steps are chosen from the files and for this machine, with comments. No file is overwritten.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "init",
        help="write a configuration for a folder of media",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="FOLDER", help="folder of media, a .tar or a .parquet")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the configuration (default NAME.yaml, here)")
    parser.add_argument("--only", nargs="+", choices=tuple(SUFFIXES), default=(), help="only these modalities")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what it is to be trained on")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    source = options.path.expanduser()
    out = options.out or Path(f"{source.resolve().name.removesuffix('.tar').removesuffix('.parquet') or 'mine'}.yaml")
    if out.exists():
        raise ConfigError(f"{out} is there already and is not overwritten; name another file with --out FILE")
    if not out.parent.is_dir():
        raise ConfigError(f"--out: the folder {out.parent} does not exist")
    look = look_at(source, options.only)
    gpu = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    text = write_config(out, look, machine(gpu, os.cpu_count() or 1), source)
    check(text)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)
    print("\n".join(report(look)))
    print(f"written: {out}\nnext:    selfflow train {shown(str(out))} --dry-run")
    print(f"then:    selfflow train {shown(str(out))} run=runs/{shown(out.stem)}")
    return 0


def check(text: str) -> None:
    """Raises ConfigError for a configuration that could not be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "init.yaml"
        path.write_text(text, encoding="utf-8")
        load_config(path, [])


def report(look: Look) -> list[str]:
    """What was seen, one fact a line."""
    lines = []
    for name, found in look.found.items():
        lines.append(f"{name:9} {describe(name, found)} ({found.data.kind} {found.data.path})")
        if found.bad:
            lines.append(f"          {found.bad} of {found.probed} that were looked at cannot be read")
        if found.captions is not None:
            lines.append(f"          captions: {found.captions.describe()}; {found.captioned:.0%} have one")
        if found.classes:
            more = ", ..." if len(found.classes) > 5 else ""
            lines.append(f"          {len(found.classes)} classes: {', '.join(found.classes[:5])}{more}")
    chosen = condition_of(look)
    lines.append(f"condition {chosen.kind}: {chosen.why}")
    return [*lines, *(f"left out  {note}" for note in look.notes)]
