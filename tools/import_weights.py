"""selfflow import: published weights as step 0 of a new run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from autoencoders.base import LatentNormalization
from configs.assembly import Assembly
from configs.assembly import normalization as normalization
from configs.assembly.adapters import media_key
from configs.assembly.latents import latent_digests, text_digest
from configs.assembly.trunk import empty_text, set_empty_text
from configs.build import free_on_resume
from configs.load import load_config
from configs.published import published_problems
from configs.schema import Config
from configs.weight_metadata import (
    autoencoder_digests,
    file_normalization,
    meaning_problems,
    normalization_problems,
    weights_meaning,
)
from core.errors import ConfigError, DataError
from core.training.checkpoint import CheckpointStore
from core.training.config import to_plain
from core.training.records import RunFolder
from core.training.trackers import LoggingConfig
from core.trunk.foreign import KINDS, import_weights, is_folder, read_file, read_folder
from core.trunk.foreign.files import WeightFile
from core.trunk.foreign.folders import check_types
from core.trunk.foreign.kinds import detect
from modalities.base import ModalityAdapter

EXAMPLES = f"""examples:
  selfflow import selfflow_imagenet256.pt --config imagenet.yaml run=runs/released
  selfflow import SiT-XL-2-256.pt --config imagenet.yaml run=runs/sit method=flow_matching --labels classes.txt
  selfflow import repa.pt --config imagenet.yaml run=runs/repa method=flow_matching trunk.sit.learn_sigma=false \\
      --drop projectors
  selfflow import SiT-XL-2-256.pt --config imagenet.yaml run=runs/tuned --fresh projector
  selfflow import FLUX.2-klein-base-4B --config klein.yaml run=runs/klein --fresh projector

The configuration describes the trunk; every weight has to fit it by name and shape. The run starts at step 0 with these
weights as student and teacher, so `selfflow generate` works at once and `selfflow train` goes on from them. The data
need not be there, unless normalization has to be measured on it.

A file of `selfflow export` says what its weights mean, and settings that no shape shows are compared with it: heads,
rotary base, time scale, how text is read, class names, autoencoders, statistics of the latents. What differs is refused
by name. --statistics file takes the file's statistics of the latents, which its weights were trained with;
--statistics data those of the data, for weights that are to be trained on; --accept SETTING lets one setting differ.
Prefixes such as module., _orig_mod., model. and ema. are taken off the names.

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
    parser.add_argument("--kind", choices=tuple(KINDS), help="by the names and shapes in the file unless set")
    parser.add_argument("--labels", type=Path, help="class names, one per line, in the order of the label table")
    parser.add_argument("--drop", action="append", default=[], metavar="PART", help="leave a part of the file out")
    parser.add_argument("--fresh", action="append", default=[], metavar="PART", help="the file lacks it: initialize it")
    parser.add_argument("--cast", action="store_true", help="convert float16, bfloat16 or float64 weights to float32")
    parser.add_argument("--statistics", choices=("file", "data"), help="of the latents, where they differ")
    parser.add_argument("--accept", action="append", default=[], metavar="SETTING", help="differs on purpose")
    parser.add_argument("--projectors", help="the trunk's names for projectors.0, projectors.1 ... of a REPA file: A,B")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    folder = new_folder(config)
    file = read_folder(options.file) if is_folder(options.file) else read_file(options.file)
    check_types(file.state, file.source)
    if found := published_problems(file, options.kind or detect(file.state, file.source), config.trunk):
        raise ConfigError(f"{file.source}: {line}" for line in found)
    assembly = Assembly(config, options.config.parent, device=config.training.torch_device())
    absent = open_data(assembly)
    assembly.labels, named = run_labels(assembly, absent, file, options.labels)
    digests, text = known_digests(assembly, file)
    own = weights_meaning(config, assembly.adapters, assembly.labels, {}, digests, text)
    check_meaning(file, own, options.accept)  # before statistics are measured, which other settings would change
    assembly.normalization, of_file = run_normalization(assembly, absent, file, options.statistics)
    names = options.projectors.split(",") if options.projectors else None
    others = other_types(file.state, assembly.trunk)
    kind = import_weights(assembly.trunk, file, options.kind, options.drop, options.fresh, names, options.cast)
    if KINDS[kind].absent:  # of published networks: what guidance leads away from
        features = empty_text(assembly.trunk, assembly.text, config.condition.dropped())
        set_empty_text(assembly.trunk, features)
    origin = {"file": options.file.name, "kind": kind, "dropped": options.drop, "fresh": options.fresh}
    origin |= {"cast": options.cast, "accepted": options.accept, "version": file.meaning.get("version")}
    extra = assembly.to_store()
    extra["normalization"] |= {name: values.to_dict() for name, values in of_file.items()}
    extra |= {"imported": origin, "autoencoders": by_part(config, digests), "text": text}
    start_run(folder, config, assembly.trunk, extra)
    count = sum(value.numel() for value in file.state.values())
    print(f"{file.source}: kind {kind}, {count:,} parameters; run folder: {folder}, step 0")
    for line in (*file.notes, *(f"{number} tensors of {dtype} cast to float32" for dtype, number in others.items())):
        print(f"  {line}")
    if labels := assembly.labels:
        print(f"{len(labels)} classes, {labels[0]!r} to {labels[-1]!r}: {named}")
    if of_file:
        print(f"statistics of the latents: the file's, of {', '.join(of_file)}")
    if not file.meaning:
        print(
            "note: the file does not say what its weights mean; heads, statistics of the latents and the like are "
            "taken from the configuration and its data"
        )
    elif not file.meaning["dropped"] and own["dropped"]:
        print(
            "note: the condition of these weights was never dropped; guidance means nothing until this run has learned "
            "a null condition"
        )
    return 0


def check_meaning(file: WeightFile, own: dict, accepted: list[str]) -> None:
    """Raises ConfigError with a line for every setting that the file's weights were trained with another value of."""
    if accepted and not file.meaning:
        raise ConfigError(f"--accept: {file.source} does not say what its weights mean, so nothing is compared")
    if problems := meaning_problems(file.meaning, own, accepted):
        first = f"{file.source} does not fit this configuration:"
        last = "Set them as in the file; or say that a difference is meant, with --accept SETTING for each"
        raise ConfigError([first, *(f"  {line}" for line in problems), last])


def known_digests(assembly: Assembly, file: WeightFile) -> tuple[dict[str, str], str]:
    """Digests of the autoencoders by modality and of the text encoder: of what is at hand, or else the file's.

    Generation then refuses other weights than these.
    """
    config, sources = assembly.config, assembly.sources
    digests = autoencoder_digests(config, latent_digests(sources, assembly.adapters), assembly.root)
    text = text_digest(config, sources)
    said = file.meaning.get("meaning", {})
    for _, _, part in config.parts():
        key = f"media.{part.modality}.autoencoder"
        same = said.get(f"{key}.kind") == part.media.autoencoder.kind
        if part.modality not in digests and same and f"{key}.digest" in said:
            digests[part.modality] = said[f"{key}.digest"]
    if not text and config.condition.text_encoder() is not None:
        text = said.get("condition.encoder.digest", "")
    return digests, text


def by_part(config: Config, digests: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """modality -> digest, as stream -> part -> digest."""
    found: dict[str, dict[str, str]] = {}
    for stream, name, part in config.parts():
        if part.modality in digests:
            found.setdefault(stream, {})[name] = digests[part.modality]
    return found


def other_types(state: dict[str, Tensor], trunk: nn.Module) -> dict[str, int]:
    """Floating-point type -> how many tensors have it, other than the trunk's own."""
    own = next(trunk.parameters()).dtype
    counts = Counter(value.dtype for value in state.values() if value.is_floating_point() and value.dtype != own)
    return {str(dtype).removeprefix("torch."): number for dtype, number in counts.items()}


def new_folder(config: Config) -> Path:
    """The run's folder. Raises ConfigError if it holds anything."""
    if not config.run:
        raise ConfigError("run: names the folder of the new run; add run=FOLDER")
    folder = Path(config.run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run: {folder} exists already and is not empty; weights are imported into a new run only")
    return folder


def open_data(assembly: Assembly) -> str:
    """Why the data cannot be opened, "" where they can; the assembly then goes without sources."""
    try:
        return "" if assembly.sources else "there are none"
    except (ConfigError, DataError) as error:
        assembly.sources = {}
        return str(error).splitlines()[0]


def run_labels(assembly: Assembly, absent: str, file: WeightFile, path: Path | None) -> tuple[list[str], str]:
    """Class names in the order of the label table, and where they come from. Empty without labels.

    Args:
        absent: why there are no data; "" where there are.
        path: of --labels.
    """
    config = assembly.config
    if config.condition.kind != "label":
        if path is not None:
            raise ConfigError(f"--labels: not read with condition.kind {config.condition.kind!r}")
        return [], ""
    if path is not None:
        return read_labels(path), str(path)
    if not absent:
        return assembly.labels, "the data's names"
    if file.meaning.get("labels"):
        return list(file.meaning["labels"]), f"the file's names, since the data cannot be opened ({absent})"
    if config.trunk.kind == "mmdit":
        table = file.state.get("context.reader.table.weight")
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


def run_normalization(
    assembly: Assembly, absent: str, file: WeightFile, wanted: str | None
) -> tuple[dict[str, LatentNormalization], dict[str, LatentNormalization]]:
    """The statistics of all modalities, and those of them that are the file's.

    Published statistics of autoencoders, those of the data, or those of the file: where the others are not to be had,
    where they agree but for rounding, and where they are wanted. Raises ConfigError where they differ and nothing is
    wanted.
    """
    adapters: dict[str, ModalityAdapter] = {}  # the first of each modality
    keys: dict[str, str] = {}
    for stream, name, part in assembly.config.parts():
        adapters.setdefault(part.modality, assembly.adapters[stream][name])
        keys.setdefault(part.modality, media_key(assembly.config.streams[stream], stream, name))
    theirs = {name: values for name, values in file_normalization(file.meaning).items() if name in adapters}
    if wanted == "file" and not theirs:
        raise ConfigError(f"--statistics: {file.source} holds none; use those of the data")
    if not absent:
        own = assembly.normalization
    else:  # weights of an autoencoder are read only where nothing else has its statistics
        own = {name: adapter.normalization for name, adapter in adapters.items() if name not in theirs}
        own = {name: values for name, values in own.items() if values is not None}
    missing = [name for name in adapters if name not in own and name not in theirs]
    if missing:
        raise ConfigError(
            f"{keys[name]}.autoencoder: has no published normalization, so it is measured on the data, which cannot be "
            f"opened: {absent}"
            for name in missing
        )
    different = normalization_problems(file.meaning, own)
    if different and wanted is None:
        raise ConfigError(
            [f"{file.source} was trained on latents of other statistics; its samples would come out wrong:"]
            + [f"  {name}: {line}" for name, line in different.items()]
            + ["Take the file's with --statistics file, or train these weights on with --statistics data"]
        )
    if wanted == "data":
        of_file = {name: values for name, values in theirs.items() if name not in own}
    else:
        # Published ones that agree stay with the weights of their autoencoder.
        published = {name for name in normalization.published(assembly.config, assembly.adapters) if name in own}
        of_file = {name: values for name, values in theirs.items() if name in different or name not in published}
    return own | of_file, of_file


def start_run(folder: Path, config: Config, trunk: nn.Module, extra: dict) -> None:
    """Publish a checkpoint of step 0 with the trunk as student and teacher, and no state of an optimizer."""
    plain, weights = to_plain(config), trunk.state_dict()
    # First the weights: a run folder without them would start from random ones.
    store = CheckpointStore(folder / "checkpoints", keep=config.training.keep)
    store.publish(0, {"student": weights, "teacher": weights, "optimizer": {}}, extra)
    # Trackers start with the training, and so do the fingerprints of the data.
    quiet = {**plain, "logging": to_plain(LoggingConfig())}
    RunFolder.open(folder, quiet, {}, free_on_resume(config)).close()
