"""selfflow encode: media to shards of latents, once, so that training needs neither the media nor the autoencoder."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from configs.captions import caption_warnings
from configs.encoding import EncodeOptions, Encoding, build_encodings
from configs.load import load_config
from core.durable import writing
from core.errors import ConfigError
from core.parallel import DEVICES, check_devices, spread
from core.progress import ProgressBar
from modalities.latents.chunks import ChunkFolder, mds_writer
from modalities.latents.encode import Progress, encode_chunks
from modalities.latents.format import DTYPES
from modalities.latents.publish import publish
from tools.outputs import output_folder
from tools.ray_engine import spread_over_ray

DEFAULTS = EncodeOptions()
EXAMPLES = """examples:
  selfflow encode configs/paper/t2i_flux2.yaml --out /data/latents --workers 8
  selfflow encode configs/mine.yaml --out latents --stream video --views 4 --workers 16
  selfflow encode configs/mine.yaml --out latents --shard 2/8          one of eight machines that see one folder
  selfflow encode configs/mine.yaml --out /shared/latents --engine ray       all GPUs of the Ray cluster RAY_ADDRESS

Reads streams.NAME.data, loads and crops as training does, and writes FOLDER/NAME: MDS shards of raw latents of every
part of a sample, with captions, labels and checksums, and manifest.json. To train on them:

  selfflow train configs/mine.yaml 'streams.image.data={kind: latents, path: latents/image}'

The same command goes on where it was interrupted, also after kill -9; a changed setting is refused by name. Records
that cannot be used are set aside, listed in FOLDER/NAME/quarantine.jsonl and shown by `selfflow inspect FOLDER`. Once
their chunk is finished, only --retry tries them again (after a missing decoder has been installed, say).

For data on several disks, or machines without a common folder: encode one --shard on each, gather the chunk-* folders
in one place, and run the command once more there. `selfflow inspect FOLDER` checks the result and decodes samples.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "encode",
        help="encode media into shards of latents to train on",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets a folder for each stream")
    parser.add_argument("--stream", metavar="NAME", help="only this one of the configuration")
    parser.add_argument("--workers", type=int, default=2, help="processes that load media; 0 is none (default 2)")
    parser.add_argument("--batch", type=int, default=16, help="samples encoded at once (default 16)")
    parser.add_argument(
        "--views", type=int, default=DEFAULTS.views, help="random crops or windows of each record (default 1)"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N shards of the work (default 1/1)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=DEVICES)
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: over the machines of a Ray cluster"
    )
    parser.add_argument("--text", action="store_true", help="store features of condition.encoder for every caption")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DEFAULTS.dtype, help=f"of the latents (default {DEFAULTS.dtype})"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=DEFAULTS.chunk,
        help=f"records that are published together: what a kill may cost (default {DEFAULTS.chunk})",
    )
    parser.add_argument("--retry", action="store_true", help="redo the chunks in which records were set aside")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    shard = parse_shard(options.shard)
    for name, least in (("workers", 0), ("batch", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: {getattr(options, name)} must be at least {least}")
    check_devices(options.devices)
    mds_writer()  # before anything is loaded: the package may be missing
    output_folder(options.out, "--out")
    config = load_config(options.config, options.overrides)
    chosen = EncodeOptions(options.views, options.chunk, options.dtype, options.text)
    encodings = build_encodings(config, options.config.parent, chosen, options.stream)
    for name, encoding in encodings.items():
        if (text := encoding.job.text) is not None:
            for line in caption_warnings(config, {name: encoding.job.source}, text.encoder):
                print(f"warning: {line}", file=sys.stderr)
        path, sizes = options.out / name, (options.workers, options.batch)
        maker = ChunkMaker(options.config.resolve(), options.overrides, chosen, name, path.resolve(), *sizes)
        elsewhere = None
        if options.engine == "ray":
            elsewhere = partial(spread_over_ray, maker, workers=options.devices)
        elif options.devices > 1:
            elsewhere = partial(spread, maker, workers=options.devices, daemon=False)  # each has loading processes
        encode(encoding, path, shard, *sizes, options.retry, elsewhere)
    return 0


def encode(
    encoding: Encoding,
    path: Path,
    shard: tuple[int, int],
    workers: int,
    batch: int,
    retry: bool = False,
    elsewhere: Callable[[list[int]], Iterable[Progress]] | None = None,
) -> None:
    """Make the missing chunks of a shard; where then none is missing, publish the whole.

    Args:
        retry: the chunks of the shard in which records were set aside are redone.
        elsewhere: makes chunks in other processes; None for this one.
    """
    job = encoding.job
    folder = ChunkFolder(path, encoding.settings, job.chunks)
    with writing(path):
        folder.open()
        known_bad = set_aside(folder, shard, retry)
    missing = [number for number in folder.missing() if number % shard[1] == shard[0]]
    todo = sum(len(job.records(number)) for number in missing) * job.views
    whole = sum(len(job.records(number)) for number in range(shard[0], job.chunks, shard[1])) * job.views
    if missing:
        with ExitStack() as stack:
            bar = stack.enter_context(ProgressBar(total=whole, initial=whole - todo, unit="sample", desc=job.stream))
            report = Report(bar, known_bad)
            if elsewhere is None:
                encode_chunks(job, folder, missing, workers, batch, report)
            for done in () if elsewhere is None else elsewhere(missing):
                report(done)
    if left := len(folder.missing()):
        print(f"{job.stream}: this shard is done; {left} of {job.chunks} chunks of {path} are missing")
        return
    with writing(path, "; all chunks are there, and the same command goes on"):
        found = publish(job, folder, encoding.about)
    bad = f", {found.bad} could not be used (listed in {folder.quarantine})" if found.bad else ""
    print(
        f"{job.stream}: {found.samples:,} samples of {found.records:,} records{bad}, {found.bytes / 1e6:,.1f} MB in "
        f"{len(found.shards)} shards: {path}"
    )


@dataclass
class ChunkMaker:
    """Makes chunks of a stream in a process of its own, which opens data and networks when it has its first one."""

    config: Path
    overrides: list[str]
    options: EncodeOptions
    stream: str
    path: Path
    workers: int
    batch: int

    @cached_property
    def encoding(self) -> Encoding:
        settings = load_config(self.config, self.overrides)
        return build_encodings(settings, self.config.parent, self.options, self.stream)[self.stream]

    def __call__(self, numbers: Sequence[int]) -> Iterator[Progress]:
        job = self.encoding.job
        folder = ChunkFolder(self.path, self.encoding.settings, job.chunks)
        for number in numbers:
            found: list[Progress] = []
            encode_chunks(job, folder, [number], self.workers, self.batch, found.append)
            yield from found


def set_aside(folder: ChunkFolder, shard: tuple[int, int], retry: bool) -> int:
    """The number of records that were set aside in finished chunks, and stay so; says what can be done about them."""
    bad = {number: len(folder.read(number).bad) for number in folder.there()}
    again = [number for number, count in bad.items() if count and number % shard[1] == shard[0]]
    count = sum(bad[number] for number in again)
    if count and retry:
        for number in again:
            folder.discard(number)
        print(f"{count:,} records that were set aside are tried again; {len(again):,} chunks are made anew", flush=True)
        return sum(bad.values()) - count
    if count:
        print(f"{count:,} records were set aside earlier ({folder.quarantine}); --retry tries them again", flush=True)
    return sum(bad.values())


class Report:
    """Shows progress on a bar: samples, rate and time left are the bar's own; bytes and bad records beside them."""

    def __init__(self, bar: ProgressBar, bad: int):
        self.bar, self.bad, self.bytes = bar, bad, 0

    def __call__(self, done: Progress) -> None:
        self.bad += done.bad
        self.bytes += done.bytes
        seconds = max(self.bar.format_dict["elapsed"], 1e-3)
        self.bar.set_postfix_str(f"{self.bytes / 1e6 / seconds:.1f} MB/s, {self.bad} bad", refresh=False)
        self.bar.update(done.samples + done.left_out)


def parse_shard(text: str) -> tuple[int, int]:
    """I/N -> (I - 1, N)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard: {text!r} must be I/N with I in 1..N, such as 1/4")
    return int(found[1]) - 1, int(found[2])
