"""selfflow import: published weights as step 0 of a new run."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor, nn

from autoencoders.base import Whitening
from configs.build import build_streams, checkpoint_extra, class_names, free_on_resume, measure_all
from configs.load import load_config
from configs.networks import build_adapters, build_encoders, build_trunk, projector_specs
from configs.schema import Config
from core.errors import ConfigError, DataError
from core.training.checkpoint import CheckpointStore
from core.training.config import to_plain
from core.training.records import RunFolder
from core.training.trackers import LoggingConfig
from core.trunk.foreign import KINDS, import_weights, read_file
from core.trunk.projectors import ProjectorSpec
from modalities.base import ModalityAdapter
from modalities.data.loader import Stream

EXAMPLES = f"""examples:
  selfflow import selfflow_imagenet256.pt --config imagenet.yaml run=runs/released
  selfflow import SiT-XL-2-256.pt --config imagenet.yaml run=runs/sit method=flow_matching --labels classes.txt
  selfflow import repa.pt --config imagenet.yaml run=runs/repa method=flow_matching trunk.sit.learn_sigma=false \\
      --drop projectors
  selfflow import SiT-XL-2-256.pt --config imagenet.yaml run=runs/tuned --fresh projector

The configuration describes the trunk; every weight has to fit it by name and shape. The run starts at step 0 with these
weights as student and teacher, so `selfflow generate` works at once and `selfflow train` goes on from them. The data
need not be there, unless whitening has to be measured on it.

kinds:
{chr(10).join(f"  {name:14}{kind.about}" for name, kind in KINDS.items())}
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "import",
        help="start a run from published weights",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help=".pt, .pth, .ckpt or .safetensors")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the configuration")
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--kind", choices=tuple(KINDS), help="told by the names and shapes in the file unless set")
    parser.add_argument("--labels", type=Path, help="class names, one per line, in the order of the label table")
    parser.add_argument("--drop", action="append", default=[], metavar="PART", help="leave a part of the file out")
    parser.add_argument("--fresh", action="append", default=[], metavar="PART", help="the file lacks it: initialise it")
    parser.add_argument("--projectors", help="the trunk's names for projectors.0, projectors.1 ... of a REPA file: A,B")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    folder = new_folder(config)
    file = read_file(options.file)
    adapters = build_adapters(config, options.config.parent)
    for adapter in adapters.values():
        adapter.to(config.training.torch_device())
    streams, absent = open_data(config, adapters, options.config.parent)
    labels, named = run_labels(config, streams, absent, file.state, options.labels)
    whitening = run_whitening(config, adapters, streams, absent)
    projectors = projector_specs(config, build_encoders(config, adapters, options.config.parent))
    trunk = build_trunk(config, adapters, labels, projectors)
    names = options.projectors.split(",") if options.projectors else None
    kind = import_weights(trunk, file, options.kind, options.drop, options.fresh, names)
    origin = {"file": options.file.name, "kind": kind, "dropped": options.drop, "fresh": options.fresh}
    start_run(folder, config, options.config.parent, trunk, labels, adapters, whitening, projectors, origin)
    count = sum(value.numel() for value in file.state.values())
    print(f"{file.source}: kind {kind}, {count:,} parameters; run folder: {folder}, step 0")
    if labels:
        print(f"{len(labels)} classes, {labels[0]!r} to {labels[-1]!r}: {named}")
    return 0


def new_folder(config: Config) -> Path:
    """The run's folder. Raises ConfigError if it holds anything."""
    if not config.run:
        raise ConfigError("run: names the folder of the new run; add run=FOLDER")
    folder = Path(config.run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run: {folder} exists already and is not empty; weights are imported into a new run only")
    return folder


def open_data(config: Config, adapters: dict[str, ModalityAdapter], root: Path) -> tuple[dict[str, Stream] | None, str]:
    """The data, or None and why it cannot be opened."""
    try:
        return build_streams(config, adapters, root), ""
    except (ConfigError, DataError) as error:
        return None, str(error).splitlines()[0]


def run_labels(
    config: Config, streams: dict[str, Stream] | None, absent: str, state: dict[str, Tensor], path: Path | None
) -> tuple[list[str], str]:
    """Class names in the order of the label table, and where they come from. Empty without labels."""
    if config.condition.kind != "label":
        if path is not None:
            raise ConfigError(f"--labels: not read with condition.kind {config.condition.kind!r}")
        return [], ""
    if path is not None:
        return read_labels(path), str(path)
    if streams is not None:
        return class_names(streams), "the data's names"
    if config.trunk.kind == "mmdit":
        table = state.get("context.reader.table.weight")
        rows = 1 if table is None else table.shape[0]
    else:
        rows = getattr(config.trunk, config.trunk.kind).num_classes
    return [str(number) for number in range(rows - 1)], f"numbers, since the data cannot be opened ({absent})"


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises ConfigError where one is empty or is there twice."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels: {path} cannot be read ({error})") from error
    if "" in names:
        raise ConfigError(f"--labels: {path}:{names.index('') + 1} is empty; every line is one class name")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name in seen:
            raise ConfigError(f"--labels: {path}: {name!r} is on line {seen[name]} and on line {number}")
        seen[name] = number
    return names


def run_whitening(
    config: Config, adapters: dict[str, ModalityAdapter], streams: dict[str, Stream] | None, absent: str
) -> dict[str, Whitening]:
    """Published statistics of the autoencoders, or those of the data."""
    if streams is not None:
        return measure_all(config, streams)
    published = {name: adapter.whitening for name, adapter in adapters.items()}
    missing = [name for name, values in published.items() if values is None]
    if missing:
        raise ConfigError(
            f"modalities.{name}: its autoencoder has no published whitening, so it is measured on the data, which "
            f"cannot be opened: {absent}"
            for name in missing
        )
    return {name: values for name, values in published.items() if values is not None}


def start_run(
    folder: Path,
    config: Config,
    root: Path,
    trunk: nn.Module,
    labels: list[str],
    adapters: dict[str, ModalityAdapter],
    whitening: dict[str, Whitening],
    projectors: dict[str, ProjectorSpec],
    origin: dict,
) -> None:
    """Publish a checkpoint of step 0 with the trunk as student and teacher, and no state of an optimizer."""
    plain, weights = to_plain(config), trunk.state_dict()
    extra = checkpoint_extra(config, root, labels, adapters, whitening, projectors) | {"imported": origin}
    # First the weights: a run folder without them would start from random ones.
    store = CheckpointStore(folder / "checkpoints", keep=config.training.keep)
    store.publish(0, {"student": weights, "teacher": weights, "optimizer": {}}, extra)
    # Trackers start with the training, and so do the fingerprints of the data.
    quiet = {**plain, "logging": to_plain(LoggingConfig())}
    RunFolder.open(folder, quiet, {}, free_on_resume(config)).close()
