"""What a machine with GPUs is asked when there is one: one command, under ten minutes.

    python -m tools.bench.gpu --json gpu.json       # on the GPUs of this machine
    python -m tools.bench.gpu --tiny                # the same lines on a CPU, to see that they run

Prints a table of Markdown. What fails, or would begin after `--minutes`, is a line below it, and everything else is
measured. Training steps and saves are of one GPU, collectives of all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from tools.bench.bench import machine, markdown
from tools.bench.measure import Row, in_own_process, matrix_peak, median_row, rate_row, side_by_side
from tools.bench.sections import trunk_rows
from tools.bench.sides import HEADS, Setup, build_trainer, class_context, make_microbatch, step_of, trunk_config

MINUTES = 9.0
FULL = Setup("S", batch=38, grid=16, rounds=10, warmup=3, device="cuda", precision="bf16")
TINY = Setup("tiny", batch=2, grid=3, rounds=2, warmup=1, threads=1)
TEXT = 64  # tokens of a caption
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"recompute": 1},
    "compiled": {"compile": True},
    "compiled and recomputed": {"compile": True, "recompute": 1},
}
MEGABYTES = (1, 40, 400)  # a block of the 625M trunk has 40 MB in bf16

Jobs = dict[str, Callable[[], list[Row]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.gpu", description="Measure on the GPUs of this machine"
    )
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU")
    parser.add_argument("--trunk", help="KIND:SIZE (default mmdit:625M)")
    parser.add_argument("--batch", type=int, help=f"samples of a step (default {FULL.batch})")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"nothing begins later (default {MINUTES:g})")
    parser.add_argument(
        "--scratch", type=Path, help="folder for checkpoints, 35 GB (default: that for temporary files)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="settings, machine and all raw times")
    options = parser.parse_args(arguments)
    setup = TINY if options.tiny else FULL
    setup = setup if options.batch is None else replace(setup, batch=options.batch)
    if problems := setup.problems():
        print("\n".join(problems), file=sys.stderr)
        return 2
    trunk = options.trunk or ("mmdit:tiny" if options.tiny else "mmdit:625M")
    about = {**machine(setup), "trunk": f"{trunk}, batch {setup.batch} x {setup.tokens} tokens"}
    rows, failed = measured(jobs(setup, trunk, options.scratch, options.tiny), options.minutes)
    print("\n".join([*(f"- {key}: {value}" for key, value in about.items()), "", *markdown(rows)]))
    print("\n".join(f"- {name}: {reason}" for name, reason in failed.items()))
    if options.json:
        report = {"machine": about, "setup": asdict(setup), "rows": [asdict(row) for row in rows], "failed": failed}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed else 0


def jobs(setup: Setup, trunk: str, scratch: Path | None, tiny: bool) -> Jobs:
    """What to measure, by name; compilation, which takes minutes, comes last."""
    peak = matrix_peak(setup.device, setup.precision)
    steps: Jobs = {
        name: partial(step_rows, name, replace(setup, **changes), trunk, peak) for name, changes in VARIANTS.items()
    }
    devices = 2 if tiny else torch.cuda.device_count()
    found: Jobs = {
        "peak": lambda: [Row("peak", "fastest large matrix product", peak, "TFLOP/s")],
        "plain": steps.pop("plain"),
        "saves": partial(in_own_process, save_rows, setup, trunk, scratch),
        "collectives": partial(collective_rows, devices, setup.device, MEGABYTES[:1] if tiny else MEGABYTES),
    }
    return found | steps


def measured(todo: Jobs, minutes: float) -> tuple[list[Row], dict[str, str]]:
    """Rows, and why a job has none."""
    rows: list[Row] = []
    failed: dict[str, str] = {}
    started = time.monotonic()
    for name, job in todo.items():
        if time.monotonic() - started > 60 * minutes:
            failed[name] = f"not begun after {minutes:g} minutes"
            continue
        print(f"measuring: {name}", file=sys.stderr)
        try:
            rows += job()
        except Exception as error:  # noqa: BLE001 - time on such a machine is short: the others are measured
            failed[name] = f"{type(error).__name__}: {error}"
    return rows, failed


def step_rows(name: str, setup: Setup, trunk: str, peak: float) -> list[Row]:
    """A training step: time, tokens/s, FLOPs, their share of the peak, memory."""
    rows = in_own_process(trunk_rows, setup, trunk, TEXT, peak)
    return [replace(row, section=name) for row in rows]


def save_rows(setup: Setup, trunk: str, scratch: Path | None) -> list[Row]:
    """How long a checkpoint holds up the training, saved at once and behind it. Meant for a process of its own."""
    torch.set_num_threads(setup.threads)
    kind, config, channels = trunk_config(trunk, setup, 0)
    microbatch = make_microbatch(setup, "self_flow", channels, class_context(setup))
    with TemporaryDirectory(dir=scratch) as folder:
        trainer = build_trainer(setup, kind(config, projectors=HEADS), "self_flow", microbatch, Path(folder))
        step = step_of(trainer)
        alone = side_by_side({"step": step}, setup.rounds, setup.warmup, setup.device)
        at_once = seconds(lambda: trainer.saver.save(1, trainer.state, {}, leaving=False))
        files = [path.stat().st_size for path in trainer.store.folder(1).rglob("*") if path.is_file()]
        trainer.saver.behind = True
        begun = time.perf_counter()
        held = seconds(lambda: trainer.saver.save(2, trainer.state, {}, leaving=False))
        meanwhile = [seconds(step)]
        while 2 not in trainer.store.steps():
            meanwhile.append(seconds(step))
        published = time.perf_counter() - begun
        trainer.saver.close()
        trainer.folder.close()
    return [
        Row("saves", "checkpoint", sum(files) / 1e9, "GB"),
        Row("saves", "the training waits, saved at once", at_once, "s"),
        Row("saves", "the training waits, saved behind it", held, "s"),
        Row("saves", "until it is published behind the training", published, "s"),
        median_row("saves", "a step alone", alone["step"], "s", alone),
        median_row("saves", "a step meanwhile", meanwhile, "s", {"meanwhile": meanwhile}),
    ]


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def collective_rows(devices: int, device: str, megabytes: Sequence[int]) -> list[Row]:
    """GB/s that each device receives in the exchanges of FSDP; nothing on a machine with one device."""
    if devices < 2:
        return []
    with NamedTemporaryFile("r") as report, TemporaryDirectory() as folder:
        arguments = (devices, device, tuple(megabytes), f"{folder}/store", report.name)
        multiprocessing.spawn(exchange, arguments, devices)  # pyright: ignore[reportPrivateImportUsage] - documented
        return [Row(**row) for row in json.load(report)]


def exchange(rank: int, devices: int, device: str, megabytes: Sequence[int], store: str, report: str) -> None:
    """One process of `collective_rows`; the first writes the rows."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=devices,
        timeout=timedelta(minutes=2),
    )
    rows: list[Row] = []
    for size in megabytes:
        count = size * 10**6 // 2 // devices * devices
        whole, part = (torch.zeros(number, dtype=torch.bfloat16, device=device) for number in (count, count // devices))
        sums, share = whole.float(), part.float()
        received = (devices - 1) / devices * count
        for what, action, amount in (
            ("all-gather in bf16", partial(dist.all_gather_into_tensor, whole, part), 2 * received),
            ("reduce-scatter in float32", partial(dist.reduce_scatter_tensor, share, sums), 4 * received),
            ("all-reduce in float32", partial(dist.all_reduce, sums), 8 * received),
        ):
            times = side_by_side({what: action}, 5, 2, device)
            rows.append(rate_row("collectives", f"{what}, {size} MB", times, what, amount / 1e9, "GB/s"))
    rows.append(step_reduction(device))
    if rank == 0:
        Path(report).write_text(json.dumps([asdict(row) for row in rows]))
    dist.destroy_process_group()


def step_reduction(device: str) -> Row:
    """The one exchange of every training step, with the wait for its result: metrics, stop flag, rejected records."""
    values = torch.zeros(12, dtype=torch.float64, device=device)

    def reduce() -> list[float]:
        summed: Tensor = values.clone()
        dist.all_reduce(summed)
        return summed.tolist()

    times = side_by_side({"reduction": reduce}, 20, 5, device)
    return median_row("collectives", "the step's one reduction", [1e3 * s for s in times["reduction"]], "ms", times)


if __name__ == "__main__":
    sys.exit(main())
