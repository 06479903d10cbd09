"""selfflow inspect: what a run folder, a checkpoint or a data folder holds."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import cast

import torch

from configs.runs import checkpoint_store
from core.errors import ConfigError, DataError
from core.training.checkpoint import PARTS, CheckpointStore, digest
from core.training.config import read_plain
from core.training.flatness import Flatness
from core.training.history import read_run, shown_value
from core.training.jsonl import read_lines
from core.training.spikes import JUDGED, MARK
from core.training.stragglers import FILE as RANKS
from modalities.base import ModalityAdapter, Source
from modalities.conditioning import TextConfig, word_limit
from modalities.data.buckets import Bucket, Measured, Sized
from modalities.data.caption_lengths import caption_lengths
from modalities.data.sources.build import MEDIA_SOURCES, build_source
from modalities.data.sources.folder_scan import scan_folder
from modalities.data.sources.names import is_hidden
from modalities.data.sources.selection import SUFFIXES
from modalities.table import MODALITIES
from tools.data_notes import noted_lines
from tools.inspect.encoded import encoded_folders, inspect_encoded
from tools.inspect.robots import describe_robots, is_robot_data

_KINDS = {".parquet": "parquet", ".tar": "webdataset"}
NO_CAPTION = "(no caption)"
EXAMPLES = """examples:
  selfflow inspect runs/quickstart                        the run: method, steps, losses, checkpoints, bad records
  selfflow inspect runs/quickstart --digest               one checksum each of student, teacher and optimizer
  selfflow inspect runs/quickstart --step 2000 --digest   of an older checkpoint
  selfflow inspect photos --data image                    a folder, a .parquet or a .tar as training would read it
  selfflow inspect photos --data image --sizes 512x512,448x576    and how many records each of several sizes gets
  selfflow inspect fractal20220817_data/0.1.0             a robot data set (RLDS or LeRobot): fields, episodes, tasks
  selfflow inspect latents --verify                       what `selfflow encode` stored: every shard and every sample
  selfflow inspect latents/image --decode 8 --out look    the same, and a few samples decoded to files
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="look at a run folder, a checkpoint, data or encoded data",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, help="run folder, data, or what `selfflow encode` wrote")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--digest", action="store_true", help="checksums of student, teacher and optimizer")
    parser.add_argument(
        "--data",
        choices=tuple(name for name, row in MODALITIES.items() if not row.family),
        help="read the path as data of this modality",
    )
    parser.add_argument("--number", type=int, default=5, help="records to show (default 5)")
    parser.add_argument("--sizes", metavar="HxW,HxW", help="with --data image or video: count the records of each size")
    encoded = parser.add_argument_group("encoded data")
    encoded.add_argument("--verify", action="store_true", help="check every shard and every sample by its checksum")
    encoded.add_argument("--decode", type=int, metavar="N", help="decode N samples, spread over all, to files in --out")
    encoded.add_argument("--out", type=Path, metavar="FOLDER", help="of the decoded files")
    encoded.add_argument(
        "--autoencoder", metavar="PATH", help="its weights, where they have moved; of several parts NAME=PATH,NAME=PATH"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if is_robot_data(options.path):
        print("\n".join(describe_robots(options.path, options.number)))
    elif options.data:
        print("\n".join(describe_data(options.path, options.data, options.number, options.sizes)))
    elif folders := encoded_folders(options.path):
        return inspect_encoded(folders, options)
    elif options.verify or options.decode is not None:
        raise ConfigError(f"{options.path} holds no encoded data; --verify and --decode look at what `encode` wrote")
    elif not (options.path / "config.yaml").exists():
        raise ConfigError(f"{options.path} is no run folder (it has no config.yaml); for data add --data MODALITY")
    else:
        lines = checkpoint_digests(options.path, options.step) if options.digest else describe_run(options.path)
        print("\n".join(lines))
    return 0


def checkpoint_digests(path: Path, step: int | None) -> list[str]:
    store, step = checkpoint_store(path, step)
    stored = {key.partition("/")[0] for key in store.stored(step)}  # imported weights come without an optimizer
    parts = {part: store.load_weights(step, part) for part in PARTS if part in stored}
    return [f"step {step}", *(f"{name} {checksum}" for name, checksum in digest(parts).items())]


def describe_run(path: Path) -> list[str]:
    """Method, progress, last losses by stream, checkpoints (each verified) and bad records."""
    store = CheckpointStore(path / "checkpoints")
    config, step = read_plain(path / "config.yaml"), store.latest()
    trunk, published = config["trunk"]["kind"], "no checkpoint yet"
    if step is not None:
        sizes = [item.size.numel() for key, item in store.stored(step).items() if key.startswith("student/")]
        trunk, published = f"{trunk}, {sum(sizes):,} parameters", f"{step} of {config['training']['steps']} published"
    lines = [
        f"run       {path}",
        f"method    {config['method']}, seed {config['seed']}",
        f"trunk     {trunk}",
        f"steps     {published}",
        *describe_history(path),
    ]
    for known in store.steps():
        problem = store.problem(known)
        lines.append(f"checkpoint {known}: {'intact' if problem is None else f'DAMAGED, {problem}'}")
    last: dict[str, dict] = {}
    flat, flatness = [], Flatness()
    for entry in read_lines(path / "metrics.jsonl"):
        flat += [f"flat      step {entry['step']}, {line}" for line in flatness.add(entry)]
        if "skipped" in entry:
            lines.append(f"left out  step {entry['step']} ({entry['stream']})")
        elif MARK in entry:
            values = ", ".join(f"{name} {entry[name]:.4g}" for name in JUDGED)
            lines.append(f"spike     step {entry['step']} ({entry['stream']}), left out: {values}")
        else:
            last[entry["stream"]] = entry
    for modality, entry in last.items():
        values = ", ".join(f"{k} {v:.4g}" for k, v in entry.items() if isinstance(v, float))
        lines.append(f"{modality:9} step {entry['step']}: {values}")
    lines += flat
    for entry in read_lines(path / RANKS)[-1:]:
        for name, own in entry.items():
            if isinstance(own, dict):
                spread = f"{own['min']:.3g} to {own['max']:.3g} s, median {own['median']:.3g}"
                lines.append(f"ranks     step {entry['step']}, {name}: {spread}; most on rank {own['rank']}")
    quarantine = path / "quarantine.jsonl"
    count = len(read_lines(quarantine))
    lines.append(f"bad data  {count} records" + (f", listed in {quarantine}" if count else ""))
    lines += noted_lines(path)
    return lines


def describe_history(path: Path) -> list[str]:
    """How the run ended, what it started from, and every setting that was changed since, with its step."""
    known = read_run(path)
    lines = []
    if state := known.get("state"):
        end = known["end"]
        why = f": {end['reason']}" if end["reason"] else ""
        lines.append(f"state     {state} after step {end['step']}{why}")
    if begun := known.get("init"):
        step = f", EMA of step {begun['step']}" if "step" in begun else f", kind {begun['kind']}"
        lines.append(f"init      {begun['source']}{step}")
    for entry in known.get("changes", []):
        old, new = (shown_value(entry.get(name, "(not there)")) for name in ("old", "new"))
        lines.append(f"changed   after step {entry['step']}: {entry['key']} {old} -> {new}")
    return lines


def describe_data(path: Path, modality: str, number: int, sizes: str | None = None) -> list[str]:
    """Number of records, the first ones, what is wrong with those that cannot be read, and what is left out."""
    config = MEDIA_SOURCES[data_kind(path, modality)](path=str(path), caption_default=NO_CAPTION)
    source: Source = build_source(config, modality, Path.cwd())
    row = MODALITIES[modality]
    adapter = row.adapter(row.settings())
    lines = [f"{path}: {len(source)} {modality} records, {len(source.labels())} labels"]
    lines += [f"  {line}" for line in source.account().lines()]
    lines += [] if sizes is None else size_lines(source, modality, adapter, sizes)
    limit = word_limit(TextConfig())  # the default: data alone know of no run
    if lengths := caption_lengths(source, modality, 0, limit, takes=lambda text: text != NO_CAPTION):
        lines.append(f"captions  {lengths.describe()}")
    for index in range(min(number, len(source))):
        try:
            record = source.read(index)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                media = adapter.load(record, torch.Generator().manual_seed(0))
            shape, captions = tuple(media.shape), list(record.captions)
            lines.append(f"  {record.key}: {shape}, label {record.label}, captions {captions}")
            lines += sorted({f"  {record.key}: warning: {each.message}" for each in said})
        except DataError as error:
            lines.append(f"  {index}: cannot be used: {error}")
    return lines


def size_lines(source: Source, modality: str, adapter: ModalityAdapter, text: str) -> list[str]:
    """How many records each of the sizes HxW,HxW gets, as media.sizes does it."""
    found = [re.fullmatch(r"(\d+)x(\d+)", size.strip()) for size in text.split(",")]
    sizes = [(int(each[1]), int(each[2])) for each in found if each and 0 not in (int(each[1]), int(each[2]))]
    if len(sizes) != len(found) or not hasattr(adapter, "extent"):
        raise ConfigError(f"--sizes: {text!r}: heights and widths of images or videos are wanted, as 512x512,448x576")
    measured = Measured(source, modality, cast("Sized", adapter))
    buckets = [Bucket(measured, sizes, number) for number in range(len(sizes))]
    rows = [
        f"  {height} x {width}: {len(bucket):,} records" + f", {bucket.enlarged:,} enlarged" * bool(bucket.enlarged)
        for (height, width), bucket in zip(sizes, buckets, strict=True)
    ]
    if rest := len(source) - sum(map(len, buckets)):
        rows.append(f"  {rest:,} cannot be read")
    return rows


def data_kind(path: Path, modality: str) -> str:
    """The kind of source that reads a path: a folder without media may hold shards or tables."""
    # .tar.gz counts too: it is refused with a reason.
    for suffix in path.suffixes[-1:] if path.is_dir() else path.suffixes[-2:]:
        if suffix.lower() in _KINDS:
            return _KINDS[suffix.lower()]
    if not path.is_dir() or scan_folder(path, modality, SUFFIXES[modality]).names:
        return "folder"
    if (path / "index.json").is_file():
        return "mds"
    suffixes = {each.suffix.lower() for each in path.iterdir() if not is_hidden(each.name)}
    return next((kind for suffix, kind in _KINDS.items() if suffix in suffixes), "folder")
