"""From a configuration to objects: the only place that knows every room."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from autoencoders.base import Whitening
from configs.schema import Config, StreamConfig, VideoStream
from configs.sources import open_sources
from core.alignment.terms import build_alignment
from core.errors import CheckpointError, ConfigError
from core.evaluation.pair import PairPlan
from core.objective import Objective
from core.training.checkpoint import CheckpointStore
from core.training.config import read_plain, refuse_changes, to_plain
from core.training.mixing import ModalityMix
from core.training.records import RunFolder
from core.training.trainer import Trainer
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SiT
from modalities.audio import AudioAdapter, AudioConfig
from modalities.base import ModalityAdapter
from modalities.conditions import ConditionConfig, Conditions
from modalities.data.loader import StepDataset, StepFeed, Stream, measure_whitening
from modalities.data.sources import build_source
from modalities.encoders import Encoder, build_encoder
from modalities.evaluation.heldout import Reader
from modalities.evaluation.subject import Subject
from modalities.generation import Generator
from modalities.image import ImageAdapter, ImageConfig
from modalities.prepare import DevicePrepare
from modalities.video import VideoAdapter, VideoConfig

# modality -> (its settings, what they build)
ADAPTERS = {
    "image": (ImageConfig, ImageAdapter),
    "video": (VideoConfig, VideoAdapter),
    "audio": (AudioConfig, AudioAdapter),
}

# trunk.kind -> trunk of pictures with class labels
CLASS_TRUNKS = {"sit": SiT, "ddt": DDT}

# Settings that may change when a run is resumed: they do not touch a single number of the training.
FREE_ON_RESUME = {
    "run",
    "logging",
    "training.save_every",
    "training.keep",
    "training.device",
    "training.workers",
    "training.data_limit",
    *(f"modalities.{name}.{part}" for name in ADAPTERS for part in ("heldout", "sampling", "evaluation")),
}


def free_on_resume(config: Config) -> set[str]:
    """The dotted keys (or prefixes) that may change; a run without a cooldown may also be made longer."""
    return FREE_ON_RESUME | (set() if config.training.optimizer.cooldown else {"training.steps"})


def build_adapters(config: Config, root: Path) -> dict[str, ModalityAdapter]:
    """`root` is what relative paths of weights start from, where they exist there; else they are names on the hub."""
    adapters = {}
    for name, stream in config.modalities.streams().items():
        autoencoder = replace(stream.media.autoencoder, path=located(stream.media.autoencoder.path, root))
        adapters[name] = ADAPTERS[name][1](replace(stream.media, autoencoder=autoencoder))
    return adapters


def located(path: str | None, root: Path) -> str | None:
    """A path of weights: below `root` where it exists there, else unchanged."""
    return str(root / path) if path and (root / path).exists() else path


def load_autoencoders(adapters: dict[str, ModalityAdapter]) -> None:
    """Read the weights of all that have some. Raises ConfigError where they are missing or do not fit."""
    for name, adapter in adapters.items():
        with named("autoencoder", f"modalities.{name}.media.autoencoder"):
            adapter.load_weights()


@contextmanager
def named(part: str, key: str) -> Iterator[None]:
    """Errors about a part, which calls itself `part`, under the key of its section in the configuration."""
    try:
        yield
    except ConfigError as error:
        fields_of = rf"(?<![\w./]){part}\.(?=(kind|path|layer|resample|precision|posterior)\b)"
        raise ConfigError(re.sub(fields_of, f"{key}.", line) for line in error.problems) from error
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def build_encoders(config: Config, adapters: dict[str, ModalityAdapter], root: Path) -> dict[str, dict[str, Encoder]]:
    """modality -> target name -> frozen encoder. Raises ConfigError where weights are missing or do not fit."""
    encoders: dict[str, dict[str, Encoder]] = {}
    for modality, stream in config.modalities.streams().items():
        adapter, rate = adapters[modality], getattr(stream.media, "sample_rate", None)
        size = {"image": adapter.size[1:], "video": adapter.size, "audio": adapter.size[:1]}[modality]
        stride = adapter.autoencoder.spec.stride[0]
        for name, entry in stream.encoders.items():
            entry = replace(entry, path=located(entry.path, root))
            with named("encoder", f"modalities.{modality}.encoders.{name}"):
                encoder = build_encoder(entry, modality, size, adapter.grid(), stride, rate)
            encoders.setdefault(modality, {})[f"{modality}_{name}"] = encoder
    return encoders


def projector_specs(config: Config, encoders: dict[str, dict[str, Encoder]]) -> dict[str, ProjectorSpec]:
    """The projectors that the alignment terms need of the trunk, by name."""
    specs = {}
    if config.alignment.ema_teacher is not None:
        specs[TEACHER] = ProjectorSpec(config.alignment.ema_teacher.projector)
    for targets in encoders.values():
        kind = config.alignment.external.projector
        specs |= {name: ProjectorSpec(kind, encoder.channels) for name, encoder in targets.items()}
    return specs


def build_trunk(
    config: Config,
    adapters: dict[str, ModalityAdapter],
    labels: list[str],
    projectors: dict[str, ProjectorSpec],
) -> nn.Module:
    """The student, initialised from the run's seed. Raises ConfigError for combinations that cannot work."""
    if config.condition.kind == "label" and not labels:
        raise ConfigError("condition.kind: 'label' needs data with class names; these sources have none")
    if config.trunk.kind == "mmdit":
        trunk = build_mmdit(config, adapters, labels, projectors)
    else:
        trunk = build_class_trunk(config, adapters, labels, projectors)
    if found := config.alignment.depth_problems(trunk.depth):
        raise ConfigError(f"alignment.{line}" for line in found)
    return trunk


def build_mmdit(
    config: Config, adapters: dict[str, ModalityAdapter], labels: list[str], projectors: dict[str, ProjectorSpec]
) -> nn.Module:
    settings = {entry.name: getattr(config.trunk.mmdit, entry.name) for entry in fields(config.trunk.mmdit)}
    channels = {name: adapter.channels for name, adapter in adapters.items()}
    context = context_config(config.condition, len(labels))
    return MMDiT(MMDiTConfig(**settings, channels=channels, context=context), config.seed, projectors)


def build_class_trunk(
    config: Config, adapters: dict[str, ModalityAdapter], labels: list[str], projectors: dict[str, ProjectorSpec]
) -> nn.Module:
    """SiT or DDT: pictures of one size, conditioned on classes."""
    kind = config.trunk.kind
    if set(adapters) != {"image"} or config.condition.kind != "label":
        raise ConfigError(
            f"trunk.kind: {kind!r} needs the image modality alone and condition.kind: label; this run has "
            f"{', '.join(adapters)} and condition.kind: {config.condition.kind}. Trunk mmdit takes any"
        )
    (_, rows, columns), wanted = adapters["image"].grid(), getattr(config.trunk, kind)
    channels = adapters["image"].channels
    fitting = {"grid": rows, "channels": channels, "num_classes": len(labels) + 1}
    wrong = [f"trunk.{kind}.{name}={value}" for name, value in fitting.items() if getattr(wanted, name) != value]
    if wrong or rows != columns:
        raise ConfigError(
            f"trunk.{kind}: grid {wanted.grid}, channels {wanted.channels}, num_classes {wanted.num_classes} do not "
            f"fit the data: grid {rows} x {columns}, channels {channels}, {len(labels)} classes + 1 null. "
            + (f"Set {' '.join(wrong)}" if rows == columns else f"{kind} needs square pictures")
        )
    return CLASS_TRUNKS[kind](wanted, config.seed, projectors)


def context_config(condition: ConditionConfig, classes: int) -> ContextConfig:
    """How the trunk reads what `Conditions` makes."""
    if condition.kind == "label":
        return ContextConfig(kind="labels", num_classes=classes)
    rows, words = condition.text.vocabulary, condition.text.max_words
    return ContextConfig(kind="tokens", vocabulary=rows, words=words, encoder_depth=condition.encoder_depth)


def build_streams(config: Config, adapters: dict[str, ModalityAdapter], root: Path) -> dict[str, Stream]:
    """Open every data source. `root` is what relative paths start from."""
    streams, sources = {}, open_sources(config, root)
    for name, entry in config.modalities.streams().items():
        given = given_tokens(entry, adapters[name])
        keep = adapters[name].has_weights or bool(entry.encoders)
        streams[name] = Stream(sources[name], adapters[name], entry.time, entry.mask_ratio, keep_media=keep, **given)
    return streams


def given_tokens(entry: StreamConfig, adapter: ModalityAdapter) -> dict:
    """Which tokens are conditioning in training, in how many samples and at which level; {} for none."""
    if not isinstance(entry, VideoStream) or entry.first_frame_share == 0:
        return {}
    return {
        "given": adapter.given_first_frame(),
        "given_share": entry.first_frame_share,
        "given_noise": entry.first_frame_noise,
    }


def class_names(streams: dict[str, Stream]) -> list[str]:
    """Every class name of the data, in the order of the trunk's label table."""
    return sorted({label for stream in streams.values() for label in stream.source.labels()})


def measure_all(config: Config, streams: dict[str, Stream]) -> dict[str, Whitening]:
    return {name: measure_whitening(stream, config.seed) for name, stream in streams.items()}


def build_dataset(
    config: Config, streams: dict[str, Stream], whitening: dict[str, Whitening], labels: list[str]
) -> StepDataset:
    """The microbatches of the run. Raises DataError when the first sample of a modality cannot be made."""
    entries = config.modalities.streams()
    mix = ModalityMix(
        config.seed,
        {name: entry.share for name, entry in entries.items()},
        {name: entry.batch for name, entry in entries.items()},
    )
    conditions = Conditions(config.condition, labels)
    dataset = StepDataset(config.seed, mix, streams, whitening, config.noising, conditions, config.training.accumulate)
    dataset.check()
    return dataset


def build_trainer(config: Config, root: Path | None = None) -> Trainer:
    """Everything `selfflow train` needs, for a new run or to resume the one in `config.run`."""
    root = root or Path.cwd()
    adapters = build_adapters(config, root)
    streams = build_streams(config, adapters, root)
    fingerprints = {name: stream.source.fingerprint() for name, stream in streams.items()}
    identity = (Path(config.run), to_plain(config), fingerprints, free_on_resume(config))
    RunFolder.check(*identity)
    labels = class_names(streams)
    check_labels(Path(config.run), labels)
    device = config.training.torch_device()
    for adapter in adapters.values():
        adapter.to(device)
    load_autoencoders(adapters)
    whitening = known_whitening(Path(config.run), adapters) or measure_all(config, streams)
    encoders = build_encoders(config, adapters, root)
    projectors = projector_specs(config, encoders)
    trunk = build_trunk(config, adapters, labels, projectors)
    dataset = build_dataset(config, streams, whitening, labels)
    entries = config.modalities.streams()
    extra = checkpoint_extra(config, root, labels, adapters, whitening, projectors)
    return Trainer(
        config.training,
        trunk,
        Objective(build_alignment(config.alignment, trunk.depth)),
        StepFeed(dataset, config.training.workers, pin=device.type == "cuda"),
        RunFolder.open(*identity),  # the first thing that is written: everything else fits
        {name: entry.loss_weight for name, entry in entries.items()},
        extra,
        device_prepare(adapters, whitening, encoders, device),
    )


def checkpoint_extra(
    config: Config,
    root: Path,
    labels: list[str],
    adapters: dict[str, ModalityAdapter],
    whitening: dict[str, Whitening],
    projectors: dict[str, ProjectorSpec],
) -> dict:
    """What is stored in every checkpoint beside the tensors; `load_run` needs no more.

    Whitening that comes with an autoencoder's weights stays with them: it can be megabytes.
    """
    return {
        "config": to_plain(config),
        "root": str(root.resolve()),
        "labels": labels,
        "whitening": {name: values.to_dict() for name, values in whitening.items() if adapters[name].whitening is None},
        "projectors": {name: [spec.kind, spec.out] for name, spec in projectors.items()},
    }


def device_prepare(
    adapters: dict[str, ModalityAdapter],
    whitening: dict[str, Whitening],
    encoders: dict[str, dict[str, Encoder]],
    device: torch.device,
) -> DevicePrepare | None:
    """What completes microbatches on the device, or None when the loader does all of it."""
    if not encoders and not any(adapter.has_weights for adapter in adapters.values()):
        return None
    moved = {m: {name: encoder.to(device) for name, encoder in by_name.items()} for m, by_name in encoders.items()}
    return DevicePrepare(adapters, whitening, moved)


def is_finished(config: Config) -> bool:
    """Whether the run has all of its steps. Raises ConfigError where its settings differ from the given ones."""
    path = Path(config.run)
    store = CheckpointStore(path / "checkpoints")
    if max(store.steps(), default=0) < config.training.steps or (store.latest() or 0) < config.training.steps:
        return False
    refuse_changes(read_plain(path / "config.yaml"), to_plain(config), free_on_resume(config))
    return True


def check_labels(run: Path, labels: list[str]) -> None:
    """Refuse to resume a run whose label table has other rows than the data. Raises ConfigError."""
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    known = labels if step is None else store.extra(step)["labels"]
    if len(known) != len(labels):
        raise ConfigError(f"{run} was trained with {len(known)} classes, and these data have {len(labels)}")
    if known != labels:
        first = next(place for place, pair in enumerate(zip(known, labels, strict=True)) if len(set(pair)) > 1)
        raise ConfigError(
            f"{run}: its class {first} is {known[first]!r}, and that of these data is {labels[first]!r}; the label "
            "table would be mixed up"
        )


def known_whitening(run: Path, adapters: dict[str, ModalityAdapter]) -> dict[str, Whitening]:
    """The statistics that a run's newest checkpoint was trained with; empty for a new run."""
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    return {} if step is None else stored_whitening(store.extra(step), adapters)


def stored_whitening(extra: dict, adapters: dict[str, ModalityAdapter]) -> dict[str, Whitening]:
    """Measured statistics of a checkpoint, and those published with an autoencoder's weights."""
    stored = {name: Whitening.from_dict(values) for name, values in extra["whitening"].items()}
    return {name: stored.get(name, adapter.whitening) for name, adapter in adapters.items()}


@dataclass(frozen=True)
class LoadedRun:
    """What a checkpoint of a run generates with; `step` is the checkpoint's, `root` what its data paths start from.

    `folder` is the run's, wherever it lies now.
    """

    config: Config
    generator: Generator
    step: int
    root: Path
    folder: Path


def evaluation_subject(loaded: LoadedRun, stream: StreamConfig, modality: str) -> Subject:
    """What `selfflow evaluate` measures of one modality; `stream` may differ from the run's in its data paths."""
    if stream.heldout is None:
        raise ConfigError(
            f"modalities.{modality}.heldout: not set; name records that were not trained on, such as "
            f"modalities.{modality}.heldout={{kind: folder, path: FOLDER}}"
        )
    heldout, training = (build_source(source, modality, loaded.root) for source in (stream.heldout, stream.data))
    classes, seed = training.labels(), stream.evaluation.seed
    readers = [Reader(loaded.generator, modality, source, classes, seed) for source in (heldout, training)]
    rate = getattr(stream.media, "sample_rate", None)
    name = Path(stream.data.path).name or f"{stream.data.kind} {modality} data"
    return Subject(loaded.generator, modality, *readers, stream.sampling, rate, name)


def aligned_pair(loaded: LoadedRun, modality: str) -> PairPlan | None:
    """The student beside the EMA teacher, and how the run noises them; None without alignment.ema_teacher."""
    config, trunk = loaded.config, loaded.generator.trunk
    if config.alignment.ema_teacher is None:
        return None
    student = copy.deepcopy(trunk)
    student.load_state_dict(CheckpointStore(loaded.folder / "checkpoints").load_weights(loaded.step, "student"))
    stream, layers = config.modalities.streams()[modality], config.alignment.ema_teacher.layers(trunk.depth)
    given = given_tokens(stream, loaded.generator.adapters[modality])
    return PairPlan(student, *layers, config.noising, stream.time, stream.mask_ratio, **given)


def checkpoint_store(path: Path, step: int | None) -> tuple[CheckpointStore, int]:
    """A run's checkpoints and the step to read: the given one, or the newest intact one."""
    store = CheckpointStore(path / "checkpoints")
    step = store.latest() if step is None else step
    if step is None:
        raise CheckpointError(f"{path} holds no intact checkpoint (looked in {store.root})")
    return store, step


def load_run(path: Path, step: int | None = None, device: str = "auto") -> LoadedRun:
    """The teacher (EMA) of a run's newest or given checkpoint, with everything stored beside it."""
    store, step = checkpoint_store(path, step)
    extra = store.extra(step)
    config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), extra["config"]))
    config.training.device = device
    target = config.training.torch_device()
    adapters = build_adapters(config, Path(extra["root"]))
    projectors = {name: ProjectorSpec(*spec) for name, spec in extra["projectors"].items()}
    trunk = build_trunk(config, adapters, extra["labels"], projectors)
    trunk.load_state_dict(store.load_weights(step, "teacher"))
    trunk = trunk.to(target).eval().requires_grad_(False)
    for adapter in adapters.values():
        adapter.to(target)
    whitening = stored_whitening(extra, adapters)
    conditions = Conditions(config.condition, extra["labels"])
    generator = Generator(trunk, adapters, whitening, conditions, target)
    return LoadedRun(config, generator, step, Path(extra["root"]), Path(path))
