"""selfflow evaluate: how good a trained run is, on records that it was not trained on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from configs.build import LoadedRun, evaluation_subject, load_run
from configs.schema import Config, StreamConfig
from core.errors import ConfigError
from core.evaluation.statistics import FeatureStatistics, frechet_distance
from core.training.config import load
from modalities.evaluation.measure import Subject, evaluate, feature_networks, generated, random_classes
from modalities.metrics.adm import count_samples, read_reference, read_samples, write_samples
from modalities.metrics.inception import Inception

EXAMPLES = """examples:
  selfflow evaluate --run runs/mine
  selfflow evaluate --run runs/mine --modality image modalities.image.evaluation.measures=[velocity,probe]
  selfflow evaluate --run runs/mine 'modalities.image.heldout={kind: folder, path: /data/held-out}'
  selfflow evaluate --run runs/imagenet --npz samples.npz modalities.image.evaluation.generated=50000
  selfflow evaluate --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception pt_inception.pth

What is measured, on how many records and by which networks are the settings modalities.NAME.evaluation; the held-out
records are modalities.NAME.heldout. Without weights of a feature network a small classifier is trained on the training
records; its distances are named after it and are no FID. Results: RUN/evaluation/step-STEP-MODALITY.json.
"""


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
    parser.add_argument("--modality", choices=("image", "video", "audio"), help="only this one")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="folder of the results (default RUN/evaluation)")
    files = parser.add_argument_group("sample files of the ADM evaluator")
    files.add_argument("--npz", type=Path, help="write generated pictures of random classes here, and measure nothing")
    files.add_argument("--samples", type=Path, help="measure this sample file instead of a run")
    files.add_argument("--reference", type=Path, help="with --samples: a reference batch")
    files.add_argument("--inception", help="with --samples: weights of the standard Inception")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.samples is not None:
        return measure_file(options)
    if options.folder is None:
        raise ConfigError("--run: names the run folder to evaluate; or give --samples and --reference")
    loaded = load_run(options.folder, options.step, options.device)
    config: Config = load(Config, options.folder / "config.yaml", options.overrides)
    streams = config.modalities.streams()
    if options.modality and options.modality not in streams:
        raise ConfigError(f"{options.folder} was not trained on {options.modality}; it has {', '.join(streams)}")
    if options.npz is not None:
        return write_pictures(options.npz, loaded, streams)
    out = options.out or options.folder / "evaluation"
    for name in [options.modality] if options.modality else streams:
        result = evaluate_run(loaded, streams[name], name, out)
        show(name, result)
    print(f"results in {out}")
    return 0


def evaluate_run(loaded: LoadedRun, stream: StreamConfig, modality: str, out: Path) -> dict:
    """Measure one modality and write the result; a classifier that is trained on the way is kept in `out`."""
    subject, settings = evaluation_subject(loaded, stream, modality), stream.evaluation
    networks = feature_networks(subject, settings, out, loaded.root) if "samples" in settings.measures else []
    steps = settings.generated * stream.sampling.steps if networks else 0
    with tqdm(total=steps, unit="step", desc=f"{modality} samples", dynamic_ncols=True, disable=not steps) as bar:
        values = evaluate(subject, settings, networks, bar.update)
    result = {
        "modality": modality,
        "step": loaded.step,
        "method": loaded.config.method,
        "weights": "ema",
        "values": values,
        "networks": {network.kind: network.name for network in networks},
        "settings": asdict(settings),
        "sampler": asdict(stream.sampling),
        "heldout_records": len(subject.heldout),
        "torch": torch.__version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"step-{loaded.step:08d}-{modality}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def show(modality: str, result: dict) -> None:
    """The result as a table."""
    print(f"{modality}, step {result['step']}, {result['method']}")
    for name in result["networks"].values():
        print(f"  network: {name}")
    for name, value in result["values"].items():
        print(f"  {name:44} {value:12.5g}")


def write_pictures(path: Path, loaded: LoadedRun, streams: dict[str, StreamConfig]) -> int:
    """A sample file for the ADM evaluator: uniformly random classes, which is its usual protocol."""
    if "image" not in streams:
        raise ConfigError(f"--npz: holds pictures, and this run has {', '.join(streams)}")
    stream, model = streams["image"], loaded.generator
    settings = stream.evaluation
    subject = Subject(model, "image", (), (), stream.sampling, None, "")
    conditions = random_classes(subject, settings.seed, settings.generated)
    with tqdm(total=settings.generated * stream.sampling.steps, unit="step", dynamic_ncols=True) as bar:
        written = write_samples(path, generated(subject, settings, conditions, bar.update), settings.generated)
    print(f"{settings.generated} pictures in {written}")
    return 0


def measure_file(options: argparse.Namespace) -> int:
    """FID and sFID of a sample file against a reference batch."""
    if options.reference is None or options.inception is None:
        raise ConfigError("--samples: needs --reference FILE.npz and --inception WEIGHTS beside it")
    network, reference = Inception(options.inception), read_reference(options.reference)
    pool, spatial = FeatureStatistics(), FeatureStatistics()
    for pictures in batches_of(options.samples):
        features = network(pictures)
        pool.update(features.pool)
        spatial.update(features.spatial)
    for name, ours, mean, covariance in (
        ("FID", pool, reference.mu, reference.sigma),
        ("sFID", spatial, reference.mu_s, reference.sigma_s),
    ):
        distance = frechet_distance(ours, FeatureStatistics.of(mean, covariance))
        print(f"{name:6} {distance:.4f}")
    return 0


def batches_of(path: Path) -> Iterator[Tensor]:
    with tqdm(total=count_samples(path)[0], unit="picture", dynamic_ncols=True) as bar:
        for pictures in read_samples(path):
            yield pictures
            bar.update(len(pictures))
