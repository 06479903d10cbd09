"""From a configuration to a trainer: data, whitening, networks, run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autoencoders.base import Whitening
from configs.anew import check_fit, describe_anew, earlier_mixes, find_anew
from configs.initial import Initial, WeightSource, check_meaning, is_resumed, kept_whitening, read_source, start_from
from configs.latents import check_latents, latent_digests, text_digest
from configs.networks import (
    ADAPTERS,
    build_adapters,
    build_encoders,
    build_text_encoder,
    build_trunk,
    device_prepare,
    encoding_adapters,
    load_autoencoders,
    projector_specs,
)
from configs.schema import Config, StreamConfig, VideoStream
from configs.sources import open_sources
from configs.warnings import warnings
from core.alignment.terms import build_alignment
from core.errors import ConfigError
from core.objective import Objective
from core.training.checkpoint import NOTHING_ANEW, CheckpointStore
from core.training.config import to_plain
from core.training.history import NO_CHANGE, Change
from core.training.mixing import MixPiece, ModalityMix
from core.training.records import RunFolder
from core.training.say import say
from core.training.trainer import Trainer
from core.trunk.projectors import ProjectorSpec
from modalities.base import ModalityAdapter, Source
from modalities.conditions import Conditions
from modalities.data.loader import StepDataset, StepFeed, Stream, measure_whitening
from modalities.data.sources import SourceConfig
from modalities.generation import Generator

# Settings that may change when a run is resumed without --change: they do not touch a number of what was trained.
FREE_ON_RESUME = {
    "run",
    "logging",
    "training.save_every",
    "training.keep",
    "training.keep_every",
    "training.preview",
    "training.validate",
    "training.device",
    "training.workers",
    "training.data_limit",
    "training.skip_steps",  # of steps to come, see configs/changes.py
    *(f"modalities.{name}.{part}" for name in ADAPTERS for part in ("heldout", "sampling", "evaluation")),
}


def free_on_resume(config: Config) -> set[str]:
    """The dotted keys (or prefixes) that may change; a run whose learning rates do not depend on its length may also be
    made longer."""
    streams = config.modalities.streams().items()
    moved = {key for name, stream in streams for key in places(stream.data, f"modalities.{name}.data")}
    return FREE_ON_RESUME | moved | (set() if config.training.optimizer.reads_length() else {"training.steps"})


def places(data: SourceConfig, key: str) -> Iterator[str]:
    """Keys of where data lie, which may move: their fingerprint, of names, sizes and order, is compared."""
    yield from (f"{key}.{part}" for part in ("path", "cache", "cache_limit"))
    for name, part in data.parts.items():
        yield from places(part, f"{key}.parts.{name}")


def build_streams(
    config: Config, adapters: dict[str, ModalityAdapter], root: Path, sources: dict[str, Source] | None = None
) -> dict[str, Stream]:
    """Open every data source, or take the opened ones. `root` is what relative paths start from.

    Raises ConfigError also for stored latents that do not fit the configuration.
    """
    streams, sources = {}, open_sources(config, root) if sources is None else sources
    check_latents(config, sources, adapters, root)
    for name, entry in config.modalities.streams().items():
        given = given_tokens(entry, adapters[name]) | {"caption_choice": entry.data.caption_choice}
        keep = not entry.data.holds_latents and (adapters[name].has_weights or bool(entry.encoders))
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


def new_whitening(
    config: Config, streams: dict[str, Stream], adapters: dict[str, ModalityAdapter], source: WeightSource | None
) -> dict[str, Whitening]:
    """Of a new run: published with the autoencoder, or what the weights it starts from are used to, or measured."""
    published = {name for name, a in encoding_adapters(config, adapters).items() if a.whitening is not None}
    kept = {} if source is None else kept_whitening(source, config)
    found = {}
    for name, stream in streams.items():
        keeps = name in kept and name not in published
        found[name] = kept[name] if keeps else measure_whitening(stream, config.seed)
        if source is not None:
            how = "published with its autoencoder" if name in published else "measured on the data"
            say(f"latent statistics of {name}: {f'those of {source.name}' if keeps else how}")
    return found


def build_dataset(
    config: Config,
    streams: dict[str, Stream],
    whitening: dict[str, Whitening],
    labels: list[str],
    earlier: Sequence[MixPiece] = (),
) -> StepDataset:
    """The microbatches of the run. Raises DataError when the first sample of a modality cannot be made."""
    entries = config.modalities.streams()
    mix = ModalityMix(
        config.seed,
        {name: entry.share for name, entry in entries.items()},
        {name: entry.batch for name, entry in entries.items()},
        earlier,
    )
    conditions = Conditions(config.condition, labels)
    dataset = StepDataset(config.seed, mix, streams, whitening, config.noising, conditions, config.training.accumulate)
    dataset.check()
    return dataset


def build_trainer(
    config: Config, root: Path | None = None, change: Change = NO_CHANGE, initial: Initial | None = None
) -> Trainer:
    """Everything `selfflow train` needs, for a new run or to resume the one in `config.run`.

    Args:
        change: what differs from the settings of the run that is resumed, see configs/changes.py.
        initial: weights that a new run starts from.
    """
    from configs.watching import build_hooks  # which evaluates and so reads runs, for which it needs this module

    root, run = root or Path.cwd(), Path(config.run)
    store = CheckpointStore(run / "checkpoints")
    step = store.latest()
    source = None if is_resumed(run, initial, step) or initial is None else read_source(initial.path)
    adapters = build_adapters(config, root)
    streams = build_streams(config, adapters, root)
    fingerprints = {name: stream.source.fingerprint() for name, stream in streams.items()}
    identity = (run, to_plain(config), fingerprints, free_on_resume(config), change)
    RunFolder.check(*identity)
    labels = class_names(streams)
    check_labels(run, labels)
    if source is not None:
        check_meaning(source, initial, config, labels)
    device = config.training.torch_device()
    for adapter in adapters.values():
        adapter.to(device)
    load_autoencoders(encoding_adapters(config, adapters))
    whitening = known_whitening(run, adapters) or new_whitening(config, streams, adapters, source)
    encoders = build_encoders(config, adapters, root)
    projectors = projector_specs(config, encoders)
    trunk = build_trunk(config, adapters, labels, projectors)
    origin, anew, earlier = None, NOTHING_ANEW, []
    if source is not None:
        origin = start_from(source, initial, trunk)
    if step is not None:
        anew, earlier = find_anew(store.extra(step), config, projectors), earlier_mixes(run, config, change, step)
        check_fit(store, step, trunk, anew)
        for line in describe_anew(anew, trunk):
            say(line)
    dataset = build_dataset(config, streams, whitening, labels, earlier)
    text, sources = build_text_encoder(config, root), {name: stream.source for name, stream in streams.items()}
    if text is not None:
        text.expect(text_digest(config, sources))
        if not dataset.stores_text():
            text.to(device).load()
    generator = Generator(trunk, adapters, whitening, Conditions(config.condition, labels), device, text)
    hooks = build_hooks(config, generator, sources, root)
    entries = config.modalities.streams()
    extra = checkpoint_extra(config, root, labels, adapters, whitening, projectors)
    extra |= {"autoencoders": latent_digests(sources), "text": text_digest(config, sources)}
    change = replace(change, step=step or 0)
    return Trainer(
        config.training,
        trunk,
        Objective(build_alignment(config.alignment, trunk.depth)),
        StepFeed(dataset, config.training.workers, pin=device.type == "cuda"),
        RunFolder.open(*identity[:-1], change, origin),  # the first thing that is written: everything else fits
        {name: entry.loss_weight for name, entry in entries.items()},
        extra,
        device_prepare(adapters, whitening, encoders, device, text),
        warnings(config),
        hooks,
        anew=anew,
        initialised=source is not None,
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

    Whitening that comes with an autoencoder's weights stays with them: it can be megabytes. Where the data are latents,
    no weights are read, and it is stored too.
    """
    published = {name for name, a in encoding_adapters(config, adapters).items() if a.whitening is not None}
    return {
        "config": to_plain(config),
        "root": str(root.resolve()),
        "labels": labels,
        "whitening": {name: values.to_dict() for name, values in whitening.items() if name not in published},
        "projectors": {name: [spec.kind, spec.out] for name, spec in projectors.items()},
    }


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
    return stored | {name: adapter.whitening for name, adapter in adapters.items() if name not in stored}
