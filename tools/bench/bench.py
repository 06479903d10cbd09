"""selfflow bench: throughput and memory here, beside the official network where a checkout of it is given."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import torch

from configs.load import load_config
from core.errors import ConfigError, nearest
from tools.bench import growth, sections
from tools.bench.data import data_rows
from tools.bench.measure import Row, in_own_process, matrix_peak
from tools.bench.peer import Peer
from tools.bench.sides import Setup, trunk_problem

DATA_ROUNDS = 3  # readings of every number of workers
SECTIONS = ("step", "sampling", "tokens", "batch", "overhead")

EXAMPLES = """examples:
  selfflow bench                                             all sections, SiT-S, 256 tokens, on the CPU
  selfflow bench --peer Self-Flow --json bench.json          beside a checkout of the official repository (needs timm)
  selfflow bench --only step,overhead --rounds 30            fewer sections, more rounds
  selfflow bench --only tokens,batch --recomputes 0 1        with and without recomputed blocks
  selfflow bench --device cuda --precision bf16 --compile --trunk mmdit:625M --batch 32
  selfflow bench --data configs/real_small.yaml --workers 0 1 2    samples/s of the data, and where time goes

sections:
  step      a Self-Flow training step against flow matching, and against a plain loop on the official class
  sampling  the SDE sampler without guidance, with guidance, and with guidance in an interval
  tokens    time and peak memory of a step as a sample grows, and attention's share; each in a process of its own
  batch     time per image and peak memory as the batch grows, each in a process of its own
  overhead  the share of a step that is not the two network passes
  data      with --data: samples/s by number of loader processes, and what a sample's time is spent on
  trunk     with --trunk: tokens/s, model FLOPs per second and their share of the peak, memory

Sides are run in turn, A B A B; a ratio is the median over the rounds of the two times of one round. With --peer, losses
and samples of both networks must agree before anything is timed. Model FLOPs count matrix products and attention, two
per multiply-add: 3 x student forward (its backward is two) + teacher forward up to its layer. Shares of the peak are
of the fastest large matrix product, which is measured first.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure training and sampling speed and memory",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="S", help="of the SiT: tiny, S, B, L or XL (default S)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default 8)")
    parser.add_argument("--grid", type=int, default=16, help="tokens per side of an image (default 16: 256 tokens)")
    parser.add_argument("--steps", type=int, default=12, help="of the sampler (default 12)")
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds (default 10)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default 2)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile, on both sides of a comparison")
    parser.add_argument(
        "--recompute", type=int, default=0, metavar="K", help="every K-th block again (training.recompute)"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU time, for a machine that does other things; --threads 1"
    )
    parser.add_argument("--only", help=f"sections, with commas between: {','.join(SECTIONS)},trunk")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024, 4096], help="of section tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="of section batch")
    parser.add_argument(
        "--recomputes", type=int, nargs="+", help="of tokens and batch: each of these instead (default: --recompute)"
    )
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="checkout of the official Self-Flow repository")
    parser.add_argument(
        "--trunk", action="append", default=[], metavar="KIND:SIZE", help="mmdit:625M, sit:XL, ...; may be repeated"
    )
    parser.add_argument("--text-tokens", type=int, default=64, help="of mmdit; 0 for a class label (default 64)")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the device (default: the fastest large matrix product, measured first)"
    )
    parser.add_argument("--data", type=Path, metavar="CONFIG", help="configuration whose data are read")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="of --data: changes a setting")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of section data (default 0 1 2)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of section data: of every reading (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="settings, machine and all raw times")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    setup = Setup(**{field.name: getattr(options, field.name) for field in fields(Setup)})
    chosen = chosen_sections(options)
    problems = setup.problems() + option_problems(options)
    if problems:
        raise ConfigError(problems)
    peer = Peer(options.peer) if options.peer else None
    torch.set_num_threads(setup.threads)
    about = machine(setup)  # before the measurements, for the load of others
    peak = options.peak_tflops
    if peak is None and {"step", "tokens", "trunk"} & set(chosen):
        peak = matrix_peak(setup.device, setup.precision, setup.clock)
        about["peak"] = f"{peak:.3g} TFLOP/s, the fastest of large matrix products"
    rows, todo = [], jobs(options, setup, peer, chosen, peak)
    for number, (name, measured) in enumerate(todo.items(), start=1):
        print(f"measuring {name}, {number} of {len(todo)}", file=sys.stderr)
        rows += measured()
    print("\n".join([*(f"- {key}: {value}" for key, value in about.items()), "", *markdown(rows)]))
    if options.json:
        report = {"machine": about, "setup": asdict(setup), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def jobs(
    options: argparse.Namespace, setup: Setup, peer: Peer | None, chosen: list[str], peak: float | None
) -> dict[str, Callable[[], list[Row]]]:
    """What to measure, by name, in the order of the report."""
    recomputes = options.recomputes or [setup.recompute]
    known = {
        "step": lambda: sections.step_rows(setup, peer, peak),
        "sampling": lambda: sections.sampling_rows(setup, peer),
        "tokens": lambda: growth.tokens_rows(setup, options.tokens, recomputes, peak),
        "batch": lambda: growth.batch_rows(setup, options.batches, recomputes, options.peer),
        "overhead": lambda: sections.overhead_rows(setup),
    }
    found = {name: job for name, job in known.items() if name in chosen}
    if "data" in chosen:
        config, root = load_config(options.data, options.set), options.data.parent
        found["data"] = lambda: data_rows(config, root, options.workers, options.seconds, DATA_ROUNDS)
    if "trunk" in chosen:
        for name in options.trunk:
            arguments = (setup, name, options.text_tokens, peak)
            found[f"trunk {name}"] = partial(in_own_process, sections.trunk_rows, *arguments)
    return found


def chosen_sections(options: argparse.Namespace) -> list[str]:
    """The sections of --only; else those of --trunk and --data alone, or all that need neither."""
    given = {"trunk": bool(options.trunk), "data": bool(options.data)}
    if options.only is None:
        return [name for name, there in given.items() if there] or list(SECTIONS)
    chosen, allowed = options.only.split(","), [*SECTIONS, *given]
    wrong = [name for name in chosen if name not in allowed]
    if wrong:
        lines = (f"--only: {name!r} is not one of {', '.join(allowed)}.{nearest(name, allowed)}" for name in wrong)
        raise ConfigError(lines)
    for name, value in (("trunk", "KIND:SIZE"), ("data", "CONFIG")):
        if (name in chosen) != given[name]:
            raise ConfigError(f"--only: section {name} and --{name} {value} need each other")
    return chosen


def option_problems(options: argparse.Namespace) -> list[str]:
    found = [problem for name in options.trunk if (problem := trunk_problem(name))]
    found += [
        f"--tokens: {count} must be the square of a number from 1"
        for count in options.tokens
        if count < 1 or math.isqrt(count) ** 2 != count
    ]
    found += [f"--batches: {size} must be at least 1" for size in options.batches if size < 1]
    found += [f"--recomputes: {every} must not be negative" for every in options.recomputes or () if every < 0]
    found += [f"--workers: {count} must not be negative" for count in options.workers if count < 0]
    if not options.seconds > 0:
        found.append(f"--seconds: {options.seconds} must be above 0")
    if options.text_tokens < 0:
        found.append(f"--text-tokens: {options.text_tokens} must not be negative")
    if options.peak_tflops is not None and not options.peak_tflops > 0:
        found.append(f"--peak-tflops: {options.peak_tflops} must be above 0")
    if options.json and not options.json.parent.is_dir():
        found.append(f"--json: the folder {options.json.parent} does not exist")
    return found


def machine(setup: Setup) -> dict[str, str]:
    """What a reader needs to know to repeat the numbers."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    about = {
        "device": torch.cuda.get_device_name() if setup.device == "cuda" else f"{cpu}, {setup.threads} threads",
        "torch": f"{torch.__version__}, {setup.precision}" + ", compiled" * setup.compile,
        "SiT": f"{setup.size}, {setup.tokens} tokens, batch {setup.batch}",
        "rounds": f"{setup.rounds}, after {setup.warmup} that do not count" + ", CPU time" * setup.cpu_time,
    }
    if hasattr(os, "getloadavg"):
        about["load before"] = f"{os.getloadavg()[0]:.2f} of {os.cpu_count()} cores"
    return about


def markdown(rows: list[Row]) -> list[str]:
    """A table with the median and the range of every row."""
    lines = ["| section | what | median | lowest .. highest |", "|---|---|---:|---:|"]
    for row in rows:
        spread = "" if row.low is None or row.high is None else f"{_shown(row.low)} .. {_shown(row.high)}"
        lines.append(f"| {row.section} | {row.what} | {_shown(row.value)} {row.unit}".rstrip() + f" | {spread} |")
    return lines


def _shown(value: float) -> str:
    """Three figures, and all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
