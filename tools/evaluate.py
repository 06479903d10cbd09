"""selfflow evaluate: how good a trained run is, on records that it was not trained on."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from configs.buckets import EmptyBucketError, by_size, family
from configs.devices import generate_on
from configs.load import load_config
from configs.released import is_released
from configs.runs import LoadedRun, aligned_pair, evaluation_subject, load_run
from configs.schema import Config, StreamConfig
from core.durable import writing
from core.errors import ConfigError, SelfFlowError, described, nearest
from core.parallel import DEVICES, check_devices
from core.progress import ProgressBar
from core.training.config import to_yaml
from core.training.training_config import TrainingConfig
from modalities.evaluation.adm import write_samples
from modalities.evaluation.attempts import Measured
from modalities.evaluation.measure import evaluate
from modalities.evaluation.networks.chosen import PartNetwork, own_networks, result_names, stored_networks
from modalities.evaluation.sample_files import measure_samples, open_comparison
from modalities.evaluation.samples import generated, random_classes
from modalities.evaluation.subject import Subject, plan
from modalities.generation import guidance_problem, sampler_steps
from modalities.media.opening import with_suffix
from tools.outputs import output_folder

EXAMPLES = """examples:
  selfflow evaluate --run runs/mine
  selfflow evaluate --run runs/mine --stream image streams.image.evaluation.measures=[velocity,probe]
  selfflow evaluate --run runs/mine 'streams.image.val={kind: folder, path: /data/held-out}'
  selfflow evaluate --run runs/mine --stream audio \\
      'streams.audio.evaluation.networks=[{kind: clap, path: laion/larger_clap_music}]'
  selfflow evaluate --run runs/imagenet --npz samples.npz streams.image.evaluation.generated=50000
  selfflow evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception.pth

What is measured, on how many records and by which networks are the settings streams.NAME.evaluation; the held-out
records are streams.NAME.val. Records that the run was trained on are refused. Without weights of a feature
network a small classifier is trained on the training records; its distances are named after it and are no FID.

Results: RUN/evaluation/step-STEP-STREAM.json with `values` (flat names and numbers, listed in
modalities/evaluation/measure.py and samples.py), `networks` (what measured them), `records` (how many were there, used
and unusable), `warnings`, `failed`, and the settings.

A measure that the data do not allow (too few records, no or foreign classes) is named at the start and left out. One
that fails on the way is in `failed` and `warnings`, and the others are written. Exit status: 0 all is well, 1 something
failed on the way or a feature network could not be used, 2 nothing was measured.
"""

# Settings that evaluation reads from the command line; all others are what the run was trained with.
SETTINGS = ("data", "val", "sampling", "evaluation")
INTERRUPTED = "interrupted"  # among the failed measures of a result that Ctrl-C cut short


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="held-out loss, probes, feature health, and distances of samples to real media",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the run's")
    parser.add_argument("--run", dest="folder", type=Path, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--stream", metavar="NAME", help="only this one of the run's")
    parser.add_argument("--batch", type=int, help="samples at once; changes no number beyond float rounding")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=f"that make samples: {DEVICES}")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--text-encoder", help="folder or hub name of the run's text encoder, where the run names none")
    parser.add_argument("--out", type=Path, help="folder of the results (default RUN/evaluation)")
    files = parser.add_argument_group("sample files of the ADM evaluator")
    files.add_argument("--npz", type=Path, help="write generated images of random classes here, and measure nothing")
    files.add_argument(
        "--samples", type=Path, help="measure this sample file (or folder, .parquet, .tar of images), not a run"
    )
    files.add_argument(
        "--reference", type=Path, help="with --samples: a reference batch, mu and sigma alone, or images as above"
    )
    files.add_argument("--inception", help="with --samples: weights of the standard Inception")
    parser.set_defaults(run=run)


def evaluated_config(loaded: LoadedRun, overrides: list[str]) -> Config:
    """The run's settings with changes; a run that was passed on has them in its model.json alone."""
    if not is_released(loaded.folder):
        return load_config(loaded.folder / "config.yaml", overrides)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "config.yaml"
        path.write_text(to_yaml(loaded.config), encoding="utf-8")
        return load_config(path, overrides)


def run(options: argparse.Namespace) -> int:
    if options.samples is not None or options.reference is not None:
        return measure_file(options)
    if options.folder is None:
        raise ConfigError("--run: names the run folder to evaluate; or give --samples and --reference")
    check_overrides(options.overrides)
    check_devices(options.devices)
    out = options.out or options.folder / "evaluation"
    if options.npz is not None:
        check_file(options.npz)
    elif options.folder.is_dir():  # else loading it says what is wrong
        output_folder(out, "--out")
    loaded = load_run(options.folder, options.step, options.device, options.text_encoder)
    config = evaluated_config(loaded, options.overrides)
    streams = by_size(config).streams
    if options.batch is not None:
        if options.batch < 1:
            raise ConfigError(f"--batch: {options.batch} must be at least 1")
        batched = {name: replace(entry.evaluation, batch=options.batch) for name, entry in streams.items()}
        streams = {name: replace(entry, evaluation=batched[name]) for name, entry in streams.items()}
    if options.stream:
        if options.stream not in {*streams, *config.streams}:
            known = ", ".join(dict.fromkeys([*config.streams, *streams]))
            raise ConfigError(
                f"--stream: {options.stream!r} is not one of those that {options.folder} was trained on, {known}."
                f"{nearest(options.stream, streams)}"
            )
        streams = {name: entry for name, entry in streams.items() if options.stream in (name, family(name, entry))}
    if options.npz is not None:
        return write_images(options.npz, loaded, streams, options.devices)
    if not options.stream and any(stream.val for stream in streams.values()):
        for name in [name for name, stream in streams.items() if stream.val is None]:
            print(f"{name} is left out: streams.{name}.val is not set", file=sys.stderr)
            del streams[name]
    # All of them first: what one of them lacks should not show after an hour of measuring another.
    jobs = []
    for name, stream in streams.items():
        try:
            jobs.append(with_networks(loaded, prepare(loaded, stream, name, options.devices)))
        except EmptyBucketError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    for job in jobs:
        for line in job.notes:
            print(f"{job.subject.stream}: {line}", file=sys.stderr)
    results, failed = 0, False
    while jobs:  # each with its networks is let go when it is done
        job = jobs.pop(0)
        try:
            result = measure(loaded, job, out)
        except SelfFlowError as error:
            print(f"{job.subject.stream}: not measured: {error}", file=sys.stderr)
            failed = True
            continue
        show(result)  # before it is written: a full disk must not lose it
        write_result(out, result)
        results += 1
        failed |= bool(result["failed"])
    if not results:
        return 2
    print(f"results in {out}")
    return 1 if failed else 0


def check_file(path: Path) -> None:
    """Raises ConfigError where the file of --npz cannot be written."""
    output_folder(path.parent, "--npz")
    if with_suffix(path, ".npz").is_dir():
        raise ConfigError(f"--npz: {with_suffix(path, '.npz')} is a folder; give the name of a file")


def check_overrides(overrides: list[str]) -> None:
    """Raises ConfigError for settings that would be read by nothing here."""
    for override in overrides:
        name = override.partition("=")[0]
        if not re.fullmatch(rf"streams\.\w+\.({'|'.join(SETTINGS)})(\..+)?", name):
            part = name.split(".")[2] if name.startswith("streams.") and name.count(".") > 1 else ""
            raise ConfigError(
                f"{name}: the run keeps what it was trained with; only streams.NAME.{', .'.join(SETTINGS)} can be "
                f"set here.{nearest(part, SETTINGS)}"
            )


@dataclass(frozen=True)
class Job:
    """One stream that can be measured, and how.

    Attributes:
        stream: its settings.
        notes: what was left out, or is unusual.
        networks: those with weights, of the samples.
        failed: networks whose weights cannot be used.
    """

    stream: StreamConfig
    subject: Subject
    measures: list[str]
    notes: list[str]
    networks: dict[str, PartNetwork] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def evaluate_run(
    loaded: LoadedRun, stream: StreamConfig, name: str, out: Path, classifiers: Path | None = None
) -> dict:
    """Measure one stream and write the result into `out`.

    Args:
        classifiers: folder of the small classifiers that are trained on the way, which runs may share; `out` unless
            set.
    """
    job = with_networks(loaded, prepare(loaded, stream, name))
    result = measure(loaded, job, classifiers or out)
    write_result(out, result)
    return result


def prepare(loaded: LoadedRun, stream: StreamConfig, name: str, devices: int = 1) -> Job:
    """Open the data and choose the measures. Raises ConfigError where they do not fit."""
    subject = replace(evaluation_subject(loaded.assembly, name, stream), make=partial(generate_on, devices, loaded))
    measures, notes = plan(subject, stream.evaluation)
    unfit = guidance_problem(loaded.config.condition, stream.sampling)
    if unfit and "samples" in measures:
        notes = [*notes, f"samples: {unfit}"]
        print(f"warning: streams.{name}.sampling.{unfit}", file=sys.stderr)
    return Job(stream, subject, measures, notes)


def with_networks(loaded: LoadedRun, job: Job) -> Job:
    """The job with the feature networks that come with weights. Raises ConfigError, CheckpointError without any."""
    if "samples" not in job.measures:
        return job
    networks, wrong = stored_networks(job.subject, job.stream.evaluation, loaded.root)
    notes = [f"samples/{name} is left out: {why}" for name, why in wrong.items()]
    return replace(job, networks=networks, notes=job.notes + notes, failed=[f"samples/{name}" for name in wrong])


def measure(loaded: LoadedRun, job: Job, classifiers: Path) -> dict:
    """The result, as it goes into the file; after Ctrl-C what was measured, with INTERRUPTED among `failed`.

    Raises DataError when nothing could be measured.

    Args:
        classifiers: folder of the small classifiers that are trained on the way.
    """
    subject, settings, stream = job.subject, job.stream.evaluation, job.subject.stream
    measures, networks, found = list(job.measures), {}, Measured(warnings=list(job.notes), failed=list(job.failed))
    if "health" in measures:
        try:
            subject = replace(subject, pair=aligned_pair(loaded, stream))
        except SelfFlowError as error:
            found.fail("health/align", described(error))
    if "samples" in measures:
        own = own_networks(subject, settings, classifiers, found)
        known = {**job.networks, **own}
        # In the order of the settings, whichever of them were made here.
        names = [name for name in result_names(subject, settings) if name in known]
        networks = {name: known[name].to(subject.model.device) for name in names}
        if not networks:
            measures.remove("samples")
    each = sampler_steps(subject.model.parts[stream], job.stream.sampling)
    steps = min(settings.generated, len(subject.val)) * each if networks else 0
    with ProgressBar(total=steps, unit="step", desc=f"{stream} samples", disable=not steps) as bar:
        try:
            evaluate(subject, settings, measures, networks, bar.update, found)
        except KeyboardInterrupt:
            if not found.values:
                raise
            found.fail(INTERRUPTED, "what was not measured by then is missing")
    sides = {"val": subject.val, "training": subject.training}
    return {
        "stream": stream,
        "step": loaded.step,
        "method": loaded.config.method,
        "weights": "ema",
        "measures": measures,
        "values": found.values,
        "networks": {name: one.network.name for name, one in networks.items()},
        "records": {
            name: {"available": len(reader), "used": reader.used, "unusable": len(reader.unusable)}
            for name, reader in sides.items()
        },
        "warnings": found.warnings,
        "failed": found.failed,
        "settings": asdict(settings),
        "sampler": asdict(job.stream.sampling),
        "torch": torch.__version__,
    }


def write_result(out: Path, result: dict) -> None:
    """Raises KeyboardInterrupt, once it is written, for one that was interrupted."""
    write_json(out / f"step-{result['step']:08d}-{result['stream']}.json", result)
    if INTERRUPTED in result["failed"]:
        raise KeyboardInterrupt


def write_json(path: Path, result: dict) -> None:
    """All of it or nothing: a study takes a file that is there for a measurement that was made.

    Raises DataError where it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(part, path)


def show(result: dict) -> None:
    """The result as a table."""
    print(f"{result['stream']}, step {result['step']}, {result['method']}")
    for name, network in result["networks"].items():
        print(f"  {name}: {network}")
    for name, counts in result["records"].items():
        if counts["used"]:
            print(f"  {name} records: {counts['used']} of {counts['available']}, {counts['unusable']} unusable")
    show_values(result["values"], result["warnings"])


def show_values(values: dict[str, float], warnings: list[str]) -> None:
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"  {name:{width}} {value:12.5g}")
    for line in warnings:
        print(f"  warning: {line}")


def write_images(path: Path, loaded: LoadedRun, streams: dict[str, StreamConfig], devices: int = 1) -> int:
    """A sample file for the ADM evaluator: uniformly random classes, which is its usual protocol."""
    name, part = image_stream(streams)
    if loaded.config.condition.kind == "text":
        raise ConfigError("--npz: holds images of random classes, and this run is conditioned on text")
    settings, sampler = streams[name].evaluation, streams[name].sampling
    if unfit := guidance_problem(loaded.config.condition, sampler):
        print(f"warning: streams.{name}.sampling.{unfit}", file=sys.stderr)
    conditions = random_classes(loaded.generator, settings.seed, settings.generated)
    steps = sampler_steps(loaded.generator.parts[name], sampler)
    with ProgressBar(total=settings.generated * steps, unit="step") as bar:
        samples = generated(partial(generate_on, devices, loaded), name, sampler, settings, conditions, bar.update)
        with writing(path):
            written = write_samples(path, (media[part] for media in samples), settings.generated)
    print(f"{settings.generated} images in {written}")
    return 0


def image_stream(streams: dict[str, StreamConfig]) -> tuple[str, str]:
    """The stream of images, and the name of its part. Raises ConfigError where there is none, or several."""
    found = []
    for name, stream in streams.items():
        parts = stream.named_parts(name)
        found += [(name, part) for part, entry in parts.items() if len(parts) == 1 and entry.modality == "image"]
    if not found:
        raise ConfigError(f"--npz: holds images, and none of {', '.join(streams)} is a stream of images alone")
    if len(found) > 1:
        raise ConfigError(f"--npz: of which of {', '.join(name for name, _ in found)}? Name one with --stream")
    return found[0]


def measure_file(options: argparse.Namespace) -> int:
    """FID, sFID, IS, precision and recall of a sample file, as the ADM evaluator defines them."""
    missing = [name for name in ("samples", "reference", "inception") if getattr(options, name) is None]
    if missing:
        raise ConfigError(f"--{missing[0]}: needed; a sample file is measured with --samples, --reference, --inception")
    if options.folder is not None:
        raise ConfigError("--run: not together with --samples, which are measured without a run")
    check_overrides(options.overrides)
    if options.out is not None:
        output_folder(options.out, "--out")
    files = open_comparison(options.samples, options.reference)
    for line in files.notes:
        print(line, file=sys.stderr)
    images = len(files.samples) + (len(files.real) if files.real is not None else 0)
    with ProgressBar(total=images, unit="image") as bar:
        device = TrainingConfig(device=options.device).torch_device()
        found = measure_samples(files, options.inception, device, bar.update)
    show_values(found.values, found.warnings)
    if not found.values:
        return 2
    if options.out is not None:
        about = {name: str(getattr(options, name)) for name in ("samples", "reference", "inception")}
        path = options.out / f"{options.samples.stem}.json"
        write_json(path, {**about, **asdict(found), "torch": torch.__version__})
        print(f"results in {path}")
    return 1 if found.failed else 0
